"""Linux identity calls: file handles, birth times, and opening beneath a root.

Bindings only (name_to_handle_at(2), open_by_handle_at(2), statx(2), openat2(2)); what they mean to a
volume stands in identity.py. Structures are reused between calls for speed, one set per thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
import time
from typing import NamedTuple, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)

AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_AND_BTIME = 0xFFF
_STATX_ATTR_MOUNT_ROOT = 0x2000
_MAX_HANDLE_SIZE = 128
_SYS_OPENAT2 = 437
_TRIES = 5

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
_CONFINED = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE_SIZE),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# struct statx up to stx_dev_minor (statx(2)): mask, blksize, attributes, nlink, uid, gid, mode, ino,
# size, blocks, attributes_mask, then atime, btime, ctime, mtime as (s64 sec, u32 nsec, pad), then
# rdev and dev as (u32 major, u32 minor).
_STATX = struct.Struct("<IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIII")


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.handle = _FileHandle()
        self.handle_ref = ctypes.byref(self.handle)
        self.handle_view = memoryview(self.handle).cast("B")
        self.mount_id = ctypes.c_int()
        self.mount_ref = ctypes.byref(self.mount_id)
        self.statx = ctypes.create_string_buffer(256)


_buffers = _Buffers()


class Stat(NamedTuple):
    """What statx(2) says of one object. Times are nanoseconds since the epoch; btime is 0 where unknown."""

    mode: int
    uid: int
    gid: int
    nlink: int
    ino: int
    dev: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    btime_ns: int
    ctime_ns: int
    mtime_ns: int
    mount_root: bool  # something is mounted here; False where the kernel does not say (before Linux 5.8)


def inode_number(number: int) -> int:
    """An inode number as it is kept: 63 bits of it, since those of a network file system may have 64, and SQLite no more."""
    return number & 0x7FFF_FFFF_FFFF_FFFF


def _raise(name: bytes) -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), name)


def file_handle(dir_fd: int, name: bytes) -> bytes:
    """The handle of ``name`` in ``dir_fd``: 4 bytes little-endian type, then the file system's bytes.

    An empty name means ``dir_fd`` itself. Symlinks are not followed. Raises OSError (EOPNOTSUPP or
    ENOTSUP where the file system has no handles). Source: name_to_handle_at(2).
    """
    b = _buffers
    b.handle.handle_bytes = _MAX_HANDLE_SIZE
    flags = 0 if name else AT_EMPTY_PATH
    if _libc.name_to_handle_at(dir_fd, name, b.handle_ref, b.mount_ref, flags):
        _raise(name)
    return b.handle_view[4 : 8 + b.handle.handle_bytes].tobytes()


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open the object a handle means, on the file system of ``mount_fd``.

    Needs CAP_DAC_READ_SEARCH. Raises OSError: ESTALE when the object is gone, EPERM without the
    capability. Source: open_by_handle_at(2).
    """
    fh = _FileHandle()
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


def stat_at(dir_fd: int, name: bytes) -> Stat:
    """lstat ``name`` in ``dir_fd`` (an empty name: ``dir_fd`` itself) with its birth time.

    Of a descriptor that is what the server of a network file system says now, not what was remembered of it.
    Raises OSError. Source: statx(2).
    """
    buffer = _buffers.statx
    flags = AT_SYMLINK_NOFOLLOW if name else AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC
    if _libc.statx(dir_fd, name, flags, _STATX_BASIC_AND_BTIME, buffer):
        _raise(name)
    (
        mask, _, attributes, nlink, uid, gid, mode, ino, size, blocks, _,
        a_s, a_n, b_s, b_n, c_s, c_n, m_s, m_n, r_major, r_minor, d_major, d_minor,
    ) = _STATX.unpack_from(buffer)  # fmt: skip
    return Stat(
        mode,
        uid,
        gid,
        nlink,
        inode_number(ino),
        os.makedev(d_major, d_minor),
        os.makedev(r_major, r_minor),
        size,
        blocks,
        a_s * 1_000_000_000 + a_n,
        (b_s * 1_000_000_000 + b_n) if mask & 0x800 else 0,
        c_s * 1_000_000_000 + c_n,
        m_s * 1_000_000_000 + m_n,
        bool(attributes & _STATX_ATTR_MOUNT_ROOT),
    )


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
