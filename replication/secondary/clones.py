"""What a file system can copy without copying: btrfs whole subvolumes, btrfs and XFS the content of files.

Sources: ioctl_ficlone(2), btrfs-subvolume(8), linux/btrfs.h. A kernel or file system that lacks it says so by an OSError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Iterator

from replication.secondary.syscalls import list_directory

_FICLONE = 0x40049409
_SNAP_CREATE_V2 = 0x50009417
_SNAP_DESTROY = 0x5000940F
_SUBVOL_GETFLAGS = 0x80089419
_SUBVOL_SETFLAGS = 0x4008941A
_READ_ONLY = 2
_SNAP_ARGS = struct.Struct("=qQQ32x4040s")  # fd, transid, flags, unused, name
_DESTROY_ARGS = struct.Struct("=q4088s")
_COPY_BYTES = 8 << 20


def clone(source_fd: int, target_fd: int) -> None:
    """Have a new file share the blocks of another one. Raises OSError."""
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def can_clone(dir_fd: int) -> bool:
    """Whether files in this directory can share their blocks, found by trying."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    source, target = (
        os.open(name, flags, 0o600, dir_fd=dir_fd) for name in (b"clone.source", b"clone.target")
    )
    try:
        os.write(source, bytes(4096))
        clone(source, target)
        return True
    except OSError:
        return False
    finally:
        for fd, name in ((source, b"clone.source"), (target, b"clone.target")):
            os.close(fd)
            os.unlink(name, dir_fd=dir_fd)


def copy_content(source_fd: int, target_fd: int, size: int) -> Iterator[int]:
    """Copy a file into a new one byte by byte; holes stay holes. A step for each part: a large one takes minutes. Raises OSError."""
    at = 0
    while at < size:
        try:
            at = os.lseek(source_fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = os.lseek(source_fd, at, os.SEEK_HOLE)
        while at < end:
            part = os.pread(source_fd, min(_COPY_BYTES, end - at), at)
            if not part:
                break
            os.pwrite(target_fd, part, at)
            at += len(part)
            yield 0
        at = end
    os.ftruncate(target_fd, size)


def is_subvolume(fd: int) -> bool:
    """Whether a directory is the root of a btrfs subvolume, which can be snapshotted as a whole."""
    try:
        fcntl.ioctl(fd, _SUBVOL_GETFLAGS, bytes(8))
        return True
    except OSError:
        return False


def snapshot_subvolume(source_fd: int, dir_fd: int, name: bytes) -> None:
    """A writable snapshot of a subvolume, as ``name`` in a directory of the same file system. Raises OSError."""
    fcntl.ioctl(dir_fd, _SNAP_CREATE_V2, bytearray(_SNAP_ARGS.pack(source_fd, 0, 0, name)))


def set_read_only(fd: int, read_only: bool) -> None:
    """Nobody can write to a read-only subvolume, root included. Raises OSError."""
    (flags,) = struct.unpack("=Q", fcntl.ioctl(fd, _SUBVOL_GETFLAGS, bytes(8)))
    wanted = flags | _READ_ONLY if read_only else flags & ~_READ_ONLY
    if wanted != flags:
        fcntl.ioctl(fd, _SUBVOL_SETFLAGS, struct.pack("=Q", wanted))


def remove_subvolume(dir_fd: int, name: bytes) -> None:
    """Remove a subvolume with all that it holds. Raises OSError.

    Who is not root may not, unless the file system is mounted with user_subvol_rm_allowed; but may empty it, and then
    remove it as any directory (Linux 4.18).
    """
    try:
        fcntl.ioctl(dir_fd, _SNAP_DESTROY, bytearray(_DESTROY_ARGS.pack(0, name)))
        return
    except PermissionError:
        pass
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        set_read_only(fd, False)
    finally:
        os.close(fd)
    remove_tree(dir_fd, name)


def remove_tree(dir_fd: int, name: bytes) -> None:
    """Remove a directory of ours with all that it holds. Raises OSError."""
    for _ in removal(dir_fd, name):
        pass


def removal(dir_fd: int, name: bytes) -> Iterator[int]:
    """The same, a step for each name: a directory whose mode forbids us to empty it is no hindrance."""
    fd = _emptied(dir_fd, name)
    stack = [(name, fd, iter(list_directory(fd)))]
    try:
        while stack:
            at, fd, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                os.close(fd)
                os.rmdir(at, dir_fd=stack[-1][1] if stack else dir_fd)
            elif stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                below = _emptied(fd, entry)
                stack.append((entry, below, iter(list_directory(below))))
            else:
                os.unlink(entry, dir_fd=fd)
            yield 1
    finally:
        for _, fd, _ in stack:
            os.close(fd)


def _emptied(dir_fd: int, name: bytes) -> int:
    """A descriptor of a directory that is to be emptied."""
    if os.geteuid():
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            os.chmod("/proc/self/fd/{}".format(fd), 0o700)
        finally:
            os.close(fd)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
