"""Whether an index that SQLite does not open is damaged, or only has no room, or no right, to be opened."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat

from replication.secondary import layout

# What cannot be opened for one of these is not what we left there.
_ODD = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EISDIR)
_WITH = 64 << 10  # what SQLite makes beside an index before it can be read, or more


def is_damaged(error: sqlite3.DatabaseError, hidden_fd: int) -> bool:
    """Whether that error means it. SQLite makes files of its own beside an index, and where it cannot says no more than
    "unable to open database file". Raises OSError when there is no room for them, or something else is in the way.
    """
    if not isinstance(error, sqlite3.OperationalError):
        return True
    if "file" not in str(error):
        return False
    if any(_is_odd(layout.INDEX + suffix, hidden_fd) for suffix in (b"", b"-wal", b"-shm")):
        return True
    name = layout.TEMPORARY + b"/room.%d" % os.getpid()
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=hidden_fd)
    try:
        os.unlink(name, dir_fd=hidden_fd)
        os.posix_fallocate(fd, 0, _WITH)
    finally:
        os.close(fd)
    return False


def _is_odd(name: bytes, hidden_fd: int) -> bool:
    try:
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=hidden_fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _ODD:
            return True
        raise
    try:
        return not stat.S_ISREG(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
