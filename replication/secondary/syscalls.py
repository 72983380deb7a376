"""System calls which Python does not offer: renameat2(2), linkat(2) of a descriptor, syncfs(2).

Each has a fallback for kernels and file systems that lack it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import List, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)
_NOREPLACE = 1
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_FOLLOW = 0x400

_renameat2 = getattr(_libc, "renameat2", None)
_linkat = _libc.linkat
_syncfs = getattr(_libc, "syncfs", None)


def _raise(name: bytes) -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), name)


def rename_new(src_fd: int, src: bytes, dst_fd: int, dst: bytes) -> None:
    """Rename onto a name that must be free. Raises OSError, FileExistsError when it is not.

    Source: renameat2(2), RENAME_NOREPLACE. Where that is missing (EINVAL: the file system; ENOSYS: the
    kernel) we look first; another writer may then slip in between.
    """
    if _renameat2 is not None:
        if _renameat2(src_fd, src, dst_fd, dst, _NOREPLACE) == 0:
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
            _raise(dst)
        # EINVAL also says "a directory below itself": then plain rename says so again.
    try:
        os.stat(dst, dir_fd=dst_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(src, dst, src_dir_fd=src_fd, dst_dir_fd=dst_fd)
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), dst)


def link_descriptor(fd: int, dir_fd: int, name: bytes) -> None:
    """Give an open file (O_TMPFILE) a name. Raises OSError, FileExistsError when it is taken.

    Source: linkat(2). AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH (before Linux 6.10), the way by /proc does not.
    """
    if _linkat(fd, b"", dir_fd, name, _AT_EMPTY_PATH) == 0:
        return
    if ctypes.get_errno() != errno.ENOENT:
        _raise(name)
    if _linkat(_AT_FDCWD, b"/proc/self/fd/%d" % fd, dir_fd, name, _AT_SYMLINK_FOLLOW):
        _raise(name)


def syncfs(fd: int) -> None:
    """Write out the whole file system of ``fd``. Raises OSError when writing fails. Source: syncfs(2)."""
    if _syncfs is None:
        os.sync()
    elif _syncfs(fd):
        _raise(b"(syncfs)")


def free_bytes(fd: int) -> int:
    """What an unprivileged writer may still fill of a file system."""
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize


def spare_bytes(fd: int) -> int:
    """The same, less a reserve: a sixteenth of the file system, 32 MiB at most."""
    found = os.fstatvfs(fd)
    reserve = min(32 << 20, found.f_blocks * found.f_frsize // 16)
    return found.f_bavail * found.f_frsize - reserve


def list_directory(fd: int) -> List[bytes]:
    """Names in a directory that may have been open for long. Raises OSError.

    By a new descriptor: on btrfs one sees only the names there were when it was opened or last rewound.
    """
    fresh = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return [os.fsencode(name) for name in os.listdir(fresh)]
    finally:
        os.close(fresh)
