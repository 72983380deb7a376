"""Linux identity calls: opening by file handle, and beneath a root; handles and birth times: secondary/handles.py.

Bindings only (open_by_handle_at(2), openat2(2)); what they mean to a volume stands in identity.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import NoReturn

from replication.secondary.handles import FileHandle, Stat, file_handle, stat_at

__all__ = ["Stat", "file_handle", "open_beneath", "open_by_handle", "stat_at"]

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_OPENAT2 = 437
_TRIES = 5

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
_CONFINED = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _raise(name: bytes) -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), name)


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open the object a handle means, on the file system of ``mount_fd``.

    Needs CAP_DAC_READ_SEARCH. Raises OSError: ESTALE when the object is gone, EPERM without the
    capability. Source: open_by_handle_at(2).
    """
    fh = FileHandle()
    body = handle[4:]
    fh.handle_bytes = len(body)
    fh.handle_type = int.from_bytes(handle[:4], "little", signed=True)
    ctypes.memmove(fh.f_handle, body, len(body))
    for _ in range(_TRIES):
        fd: int = _libc.open_by_handle_at(mount_fd, ctypes.byref(fh), flags | os.O_CLOEXEC)
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.ENOMEM:  # which passes: it was seen while there was plenty
            break
        time.sleep(0.001)
    _raise(b"(by handle)")


def open_beneath(dir_fd: int, path: bytes, flags: int) -> int:
    """Open ``path`` below ``dir_fd``; never leaves it or its mount, never follows a symlink. An empty path: ``dir_fd``.

    Raises OSError: EXDEV or ELOOP for a path that would leave the tree. Source: openat2(2), Linux 5.6.
    """
    if b"\0" in path:  # the kernel would read up to there, and open something else
        raise OSError(errno.ENOENT, "no name has a zero byte in it", path)
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _CONFINED)
    fd: int = _libc.syscall(
        _SYS_OPENAT2, dir_fd, path or b".", ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    )
    if fd < 0:
        if ctypes.get_errno() == errno.ENOSYS:
            raise OSError(errno.ENOSYS, "openat2 needs Linux 5.6 or later", path)
        _raise(path)
    return fd
