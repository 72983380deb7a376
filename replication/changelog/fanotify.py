"""fanotify(7): the system calls and the layout of its events. What events mean stands in recorder.py."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
CREATE = 0x100
DELETE = 0x200
Q_OVERFLOW = 0x4000
EVENT_ON_CHILD = 0x08000000
RENAME = 0x10000000
ONDIR = 0x40000000

_CLOEXEC, _NONBLOCK = 0x1, 0x2
_UNLIMITED_QUEUE, _UNLIMITED_MARKS = 0x10, 0x20
_REPORT_DFID_NAME_TARGET = 0x200 | 0x400 | 0x800 | 0x1000
_MARK_ADD, _MARK_ONLYDIR, _MARK_DONT_FOLLOW, _MARK_FILESYSTEM = 0x1, 0x8, 0x4, 0x100

_FID, _DFID_NAME, _DFID, _OLD_DFID_NAME, _NEW_DFID_NAME = 1, 2, 3, 10, 12
_EVENT = struct.Struct("<IBBHQ")  # event_len, vers, reserved, metadata_len, mask; then fd, pid
_INFO = struct.Struct(
    "<BxH8xI"
)  # type, length, fsid, handle_bytes; then handle type and bytes, then the name
_HANDLE_AT = 16  # where an info's handle begins, type first, as replication.volume.handle has them
_METADATA_VERSION = 3

# mask, directory, name, target, and for RENAME the new directory and name. None where not reported.
Event = tuple[int, bytes | None, bytes, bytes | None, bytes | None, bytes]


def fanotify_init(*, unlimited: bool) -> int:
    """A non-blocking notification group that reports directory, name and target of each event.

    ``unlimited`` (queue and marks) needs CAP_SYS_ADMIN. Raises OSError: EINVAL before Linux 5.17,
    EPERM without the capability, EMFILE beyond fs.fanotify.max_user_groups. Source: fanotify_init(2).
    """
    flags = _CLOEXEC | _NONBLOCK | _REPORT_DFID_NAME_TARGET
    if unlimited:
        flags |= _UNLIMITED_QUEUE | _UNLIMITED_MARKS
    fd: int = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        raise _error("fanotify_init")
    return fd


def mark_filesystem(group: int, fd: int, mask: int) -> None:
    """Watch the whole file system that ``fd`` is on. Raises OSError. Source: fanotify_mark(2)."""
    _mark(group, _MARK_ADD | _MARK_FILESYSTEM, mask, fd)


def mark_directory(group: int, fd: int, mask: int) -> None:
    """Watch the directory ``fd``. Raises OSError; ENOSPC beyond fs.fanotify.max_user_marks."""
    _mark(group, _MARK_ADD | _MARK_ONLYDIR, mask, fd)


def _mark(group: int, flags: int, mask: int, fd: int) -> None:
    # Through /proc, because a descriptor opened with O_PATH is refused, and one opened otherwise needs
    # permission to read.
    path = b"/proc/self/fd/%d" % fd
    if _libc.fanotify_mark(group, flags, ctypes.c_uint64(mask), -100, path):
        raise _error("fanotify_mark")


def _error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")


def parse(data: bytes) -> Iterator[Event]:
    """The events in what was read from a group. Raises ValueError for a layout that is not known here."""
    offset, end = 0, len(data)
    event, info, handle_at = _EVENT.unpack_from, _INFO.unpack_from, _HANDLE_AT
    while offset < end:
        length, version, _, at, mask = event(data, offset)
        if version != _METADATA_VERSION:
            raise ValueError(f"fanotify events of version {version}")
        at += offset
        offset += length
        directory = target = new_directory = None
        name = new_name = b""
        while at < offset:
            kind, size, handle_size = info(data, at)
            handle_end = at + handle_at + 4 + handle_size
            handle = data[at + handle_at : handle_end]
            if kind in (_DFID_NAME, _OLD_DFID_NAME):
                directory = handle
                name = data[handle_end : at + size].rstrip(b"\0")
            elif kind == _FID:
                target = handle
            elif kind == _NEW_DFID_NAME:
                new_directory = handle
                new_name = data[handle_end : at + size].rstrip(b"\0")
            elif kind == _DFID:
                directory, name = handle, b"."
            at += size
        yield mask, directory, name, target, new_directory, new_name
