"""The volume as a host that is not the primary's own node sees it: mounted there, over NFS or otherwise.

Handles and birth times differ there, so a gfid proves nothing. What does is the state that was observed: a file of
the same inode number, ctime and size is that file, unchanged since. (Nobody can set a ctime; a restored or cloned
file system has other ones wherever it differs.) Anything else may be it or not, and is not read. On a mount of Gluster's
every object shows its gfid, on every host the same, and has to have the one that was observed as well.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from replication.gluster.mount import GFID
from replication.volume.directory import DirectoryVolume, VolumeError
from replication.volume.storage import GLUSTER, shared_kind

if TYPE_CHECKING:
    from replication.volume.handle import Stat


class MountedVolume(DirectoryVolume):
    """A volume of which only files are read that are provably those that were observed on the primary's node."""

    keeps_pages = True

    def __init__(self, root: bytes, root_ino: int) -> None:
        """``root_ino``: inode number of the primary's root, the same on every host that has the volume mounted.

        Raises VolumeError for another directory.
        """
        super().__init__(root)
        self._has_gfids = shared_kind(os.fsdecode(self.root)) == GLUSTER
        self.tells_holes = not self._has_gfids  # see GlusterVolume
        if os.fstat(self.root_fd).st_ino != root_ino:
            self.close()
            raise VolumeError(f"{os.fsdecode(root)} is not the primary: is the volume mounted there?")

    def _is(self, fd: int, stat: Stat, expect: tuple[int, int, int], gfid: bytes) -> bool:
        if expect[1] == 0 or (stat.ino, stat.ctime_ns, stat.size) != expect:
            return False
        return not self._has_gfids or os.getxattr(fd, GFID) == gfid
