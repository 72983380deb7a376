"""File handles and birth times, and the identity that is made of them.

Bindings of name_to_handle_at(2) and statx(2). Structures are reused between calls for speed, one set per thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from hashlib import blake2b
from typing import NamedTuple, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)

AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_AND_BTIME = 0xFFF
_STATX_ATTR_MOUNT_ROOT = 0x2000
_STATX_ATTR_FIXED = 0x10 | 0x20  # immutable, append-only
_MAX_HANDLE_SIZE = 128
_Q = struct.Struct("<QQ")
NO_HANDLES = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}


def inode_number(number: int) -> int:
    """An inode number as it is kept: 63 bits of it, since those of a network file system may have 64, and SQLite no more."""
    return number & 0x7FFF_FFFF_FFFF_FFFF


class FileHandle(ctypes.Structure):
    """struct file_handle."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE_SIZE),
    )


# struct statx up to stx_dev_minor (statx(2)): mask, blksize, attributes, nlink, uid, gid, mode, ino,
# size, blocks, attributes_mask, then atime, btime, ctime, mtime as (s64 sec, u32 nsec, pad), then
# rdev and dev as (u32 major, u32 minor).
_STATX = struct.Struct("<IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIII")


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.handle = FileHandle()
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
    fixed: bool = False  # immutable or append-only: nobody can rename or remove it


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
        bool(attributes & _STATX_ATTR_FIXED),
    )


def gfid_from(handle: bytes, btime_ns: int) -> bytes:
    """The gfid for a handle and a birth time in nanoseconds."""
    return blake2b(handle + btime_ns.to_bytes(8, "little"), digest_size=16).digest()


def gfid_without_handle(stat: Stat) -> bytes:
    """Where the file system has no handles (some overlayfs, FUSE), inode number and device stand in for them."""
    return gfid_from(_Q.pack(stat.ino, stat.dev), stat.btime_ns)


def identity_of(fd: int) -> bytes:
    """What an open descriptor is, whatever it is called: the gfid of an inode. Raises OSError."""
    stat = stat_at(fd, b"")
    try:
        return gfid_from(file_handle(fd, b""), stat.btime_ns)
    except OSError as error:
        if error.errno not in NO_HANDLES:
            raise
        return gfid_without_handle(stat)
