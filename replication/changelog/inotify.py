"""Being woken when a directory, or a file in it, changes: inotify(7), a page of it."""

from __future__ import annotations

import contextlib
import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_IN_MODIFY, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x40, 0x80, 0x100
_MASK = _IN_MODIFY | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE
_READ = 1 << 16


class Inotify:
    """``fd`` becomes readable when something happens; what it was is not told."""

    def __init__(self) -> None:
        self.fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def watch(self, directory: str) -> int:
        """Returns what ``forget`` wants. Raises OSError."""
        watch: int = _libc.inotify_add_watch(self.fd, os.fsencode(directory), _MASK)
        if watch < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), directory)
        return watch

    def forget(self, watch: int) -> None:
        _libc.inotify_rm_watch(self.fd, watch)

    def clear(self) -> bool:
        """Take away what is queued; whether there was anything."""
        found = False
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, _READ):
                found = True
        return found

    def close(self) -> None:
        os.close(self.fd)
