"""The volume as a host that is not the primary's own node sees it: mounted there, over NFS or otherwise.

Handles and birth times differ there, so a gfid proves nothing. What does is the state that was observed: a file of
the same inode number, ctime and size is that file, unchanged since. (Nobody can set a ctime; a restored or cloned
file system has other ones wherever it differs.) Anything else may be it or not, and is not read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from replication.volume.directory import DirectoryVolume, VolumeError

if TYPE_CHECKING:
    from replication.volume.handle import Stat


class MountedVolume(DirectoryVolume):
    """A volume of which only files are read that are provably those that were observed on the primary's node."""

    def __init__(self, root: bytes, root_ino: int) -> None:
        """``root_ino``: inode number of the primary's root, the same on every host that has the volume mounted.

        Raises VolumeError for another directory.
        """
        super().__init__(root)
        if os.fstat(self.root_fd).st_ino != root_ino:
            self.close()
            raise VolumeError(f"{os.fsdecode(root)} is not the primary: is the volume mounted there?")

    def _is(self, fd: int, stat: Stat, expect: tuple[int, int, int], gfid: bytes) -> bool:
        return expect[1] != 0 and (stat.ino, stat.ctime_ns, stat.size) == expect
