"""The gfid of an object on a directory volume: 16 bytes for an inode's whole life.

A file handle names an inode until it is freed, across renames and remounts; file systems may give
the same handle to a later inode, so the birth time guards it. The gfid is a digest of the two. The
root of a volume is always ROOT_GFID, as on Gluster.
"""

from __future__ import annotations

from replication.secondary.handles import (
    NO_HANDLES,
    Stat,
    file_handle,
    gfid_from,
    gfid_without_handle,
    stat_at,
)

__all__ = ["ROOT_GFID", "gfid_from", "identify", "identify_fd"]

ROOT_GFID = bytes(15) + b"\x01"


def identify(dir_fd: int, name: bytes) -> tuple[bytes, Stat]:
    """gfid and stat of ``name`` in ``dir_fd`` (empty name: ``dir_fd`` itself), without following symlinks.

    A mount point has an identity of its own, by its place: what is mounted there may be bound from
    elsewhere in the volume, and is not crossed into.

    Where the file system has no handles (some overlayfs, FUSE), inode number and birth time stand in
    for them. Raises OSError when the object is not there or not readable.
    """
    try:
        handle = file_handle(dir_fd, name)
    except OSError as error:
        if error.errno not in NO_HANDLES:
            raise
        stat = stat_at(dir_fd, name)
        if name and stat.mount_root:
            return _gfid_of_mount_point(dir_fd, name), stat
        return gfid_without_handle(stat), stat
    # Two calls, two moments: a name replaced between them gives a gfid that nothing has. It is never
    # found when its data is wanted, and the replacement is recorded as a change of its own.
    stat = stat_at(dir_fd, name)
    if name and stat.mount_root:
        return _gfid_of_mount_point(dir_fd, name), stat
    return gfid_from(handle, stat.btime_ns), stat


def _gfid_of_mount_point(dir_fd: int, name: bytes) -> bytes:
    return gfid_from(b"mount point" + identify_fd(dir_fd)[0] + name, 0)


def identify_fd(fd: int) -> tuple[bytes, Stat]:
    """gfid and stat of an open descriptor. Raises OSError."""
    return identify(fd, b"")
