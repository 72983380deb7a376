"""Reading a small file in the state in which it was just observed, to be sent along with that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replication.observation import Entry
    from replication.volume.directory import DirectoryVolume

SMALL = 64 << 10  # bytes
_BLOCK = 4096  # bytes; a file of more with fewer blocks than that has holes
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME


def read_observed(volume: DirectoryVolume, dir_fd: int, entry: Entry) -> tuple[bytes, dict[str, str]] | None:
    """Content and attributes (values as base64) of a small regular file with one name.

    None when it is no such file, or anything about it has changed since it was observed, or it cannot be read:
    then its content goes the usual way.
    """
    inode = entry.inode
    if inode is None or not inode.is_file or not 0 < inode.size <= SMALL or inode.nlink != 1:
        return None
    if not inode.ctime_ns:
        return None  # a change could still hide behind an equal ctime
    try:
        fd = os.open(entry.name, _FLAGS, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        if volume.keeps_pages:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        content = os.read(fd, inode.size + 1)
        xattrs = volume.xattrs(fd)
        now = volume.stat(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(content) != inode.size or (now.ino, now.ctime_ns) != (inode.ino, inode.ctime_ns):
        return None
    if inode.size > _BLOCK and now.blocks * 512 < inode.size:
        return None
    return content, xattrs
