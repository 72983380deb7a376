"""``gluster://HOST/VOLUME[/SUBDIR]``: a Gluster volume, or a directory in it, as a session names it.

Of a secondary HOST may be ``USER@HOST``: who logs in there.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
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
    user: str = ""

    def __str__(self) -> str:
        at = f"{self.user}@" if self.user else ""
        return f"{SCHEME}{at}{self.host}/{self.volume}" + (f"/{self.subdir}" if self.subdir else "")


def parse_address(text: str, *, user_too: bool = False) -> GlusterAddress | None:
    """None: it is no such address. Raises UsageError for one that will not do."""
    if not text.startswith(SCHEME):
        return None
    host, _, rest = text[len(SCHEME) :].partition("/")
    user, at, host = host.rpartition("@")
    if at and not user_too:
        raise UsageError(f"{text!r} will not do: a primary is on this node, and nobody logs in there")
    volume, _, below = rest.partition("/")
    parts = [part for part in below.split("/") if part not in {"", "."}]
    if not _HOST.fullmatch(host) or not _VOLUME.fullmatch(volume) or ".." in parts or "\0" in below:
        raise UsageError(f"{text!r} will not do: give gluster://HOST/VOLUME or gluster://HOST/VOLUME/SUBDIR")
    return GlusterAddress(host, volume, "/".join(parts), user)


def is_here(host: str) -> bool:
    """Whether a name or address means this host: something could listen there. A name that is not known does not."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, _, _, _, where in socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as trial:
                trial.bind(where)
                return True
    return False


def volume_name(primary: str) -> str:
    """What a primary is called: the volume, or the last component of the path."""
    if primary.startswith(SCHEME):
        return primary[len(SCHEME) :].partition("/")[2].partition("/")[0]
    return os.path.basename(primary.rstrip("/")) or "/"
