"""Whether a Gluster volume is one brick of this node and nothing else, as whoever follows its bricks has found.

That is noted beside its changelog, with the time of the file that glusterd writes whenever a volume is changed: while that
has that time, it is so.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from replication.session_file import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from replication.gluster.glusterd import VolumeInfo

NAME = "brick.only"
# With these a client shows not what its brick has. (Of a file whose content rotted it shows nothing.)
_SHOWN_OTHERWISE = ("features.shard", "features.cloudsync", "features.bitrot")
_OFF = {"off", "no", "false", "disable", "0"}  # source: gf_string2boolean
_SHARDS = ".shard"  # there are, or were


class OnlyBrick(msgspec.Struct, frozen=True):
    """``path`` of the brick; ``info``: glusterd's file, as it was at ``info_ns``; ``volume``: its id."""

    path: str
    info: str
    info_ns: int
    volume: str

    def is_so(self) -> bool:
        """Whether the volume is as it was then."""
        try:
            return os.stat(self.info).st_mtime_ns == self.info_ns
        except OSError:
            return False

    def is_there(self) -> bool:
        """Whether its disk is mounted."""
        try:
            return os.getxattr(self.path, "trusted.glusterfs.volume-id") == UUID(self.volume).bytes
        except (OSError, ValueError):
            return False


def note(directory: Path, info: VolumeInfo, file: str, file_ns: int) -> None:
    """``file``: see glusterd.volume_file; ``info`` is not older than it was at ``file_ns``. Raises SeamarkError."""
    kept = directory / NAME
    bricks = info.bricks
    if len(bricks) == 1 and bricks[0].local and info.started and _is_plain(info.options):
        path = bricks[0].path
        if not os.path.lexists(os.path.join(path, _SHARDS)):
            replace_file(kept, msgspec.json.encode(OnlyBrick(path, file, file_ns, info.id)).decode())
            return
    kept.unlink(missing_ok=True)


def _is_plain(options: dict[str, str]) -> bool:
    """Whether clients are shown what the brick has. What is not known to be off is on."""
    ctime = options.get("features.ctime", "on").lower() not in _OFF
    return ctime and all(options.get(name, "off").lower() in _OFF for name in _SHOWN_OTHERWISE)


def noted(directory: Path) -> OnlyBrick | None:
    """The brick that is all of the volume, now; None: it has others, or that is not known."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        found = msgspec.json.decode((directory / NAME).read_bytes(), type=OnlyBrick)
        if found.is_so() and found.is_there():
            return found
    return None
