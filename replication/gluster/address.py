"""``gluster://HOST/VOLUME[/SUBDIR]``: a Gluster volume, or a directory in it, as a session names it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from replication.errors import UsageError

SCHEME = "gluster://"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]")
_VOLUME = re.compile(r"[A-Za-z0-9_-]{1,255}")


class GlusterAddress(NamedTuple):
    """``host``: any node of the pool, which is asked what bricks the volume has. ``subdir``: no slash at its ends."""

    host: str
    volume: str
    subdir: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/{self.volume}" + (f"/{self.subdir}" if self.subdir else "")


def parse_address(text: str) -> GlusterAddress | None:
    """None: it is no such address. Raises UsageError for one that will not do."""
    if not text.startswith(SCHEME):
        return None
    host, _, rest = text[len(SCHEME) :].partition("/")
    volume, _, below = rest.partition("/")
    parts = [part for part in below.split("/") if part not in {"", "."}]
    if not _HOST.fullmatch(host) or not _VOLUME.fullmatch(volume) or ".." in parts or "\0" in below:
        raise UsageError(f"{text!r} will not do: give gluster://HOST/VOLUME or gluster://HOST/VOLUME/SUBDIR")
    return GlusterAddress(host, volume, "/".join(parts))


def volume_name(primary: str) -> str:
    """What a primary is called: the volume, or the last component of the path."""
    if primary.startswith(SCHEME):
        return primary[len(SCHEME) :].partition("/")[2].partition("/")[0]
    return os.path.basename(primary.rstrip("/")) or "/"
