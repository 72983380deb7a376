"""Reading an SQLite database in WAL mode without leaving a trace, on a read-only file system too.

A plain read-only connection still makes ``-wal`` and ``-shm`` beside the database. Source: sqlite.org/wal.html,
"Read-Only Databases"; sqlite.org/c3ref/open.html, "immutable" and "readonly_shm".
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
from contextlib import contextmanager
from typing import Iterator, Optional, Tuple
from urllib.parse import quote

_NOBODY = 65534


class NotClosed(Exception):
    """What its last user left in the log cannot be read without making a file."""


class Changed(Exception):
    """Somebody began to write where nobody was at work."""


class Untouched:
    """A connection, ``db``, that changes nothing. Raises sqlite3.Error, NotClosed, FileNotFoundError.

    While somebody else has the database open, or was killed with it open, both files of its log are there
    and are read as they stand. Otherwise nothing is in the log, and the file is read as one that nobody changes:
    then ``check`` says whether that was so.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        log = _size(path + b"-wal")
        shared = log is not None and _size(path + b"-shm") is not None
        if log and not shared:
            raise NotClosed(os.fsdecode(path))
        self._before = None if shared else self._state()
        how = "readonly_shm=1" if shared else "immutable=1"
        where = "file:{}?mode=ro&{}".format(quote(path), how)
        with _owners_left_alone():
            self.db = sqlite3.connect(where, uri=True, timeout=60, isolation_level=None)
            self.db.execute("PRAGMA temp_store=MEMORY")
            self.db.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens the log

    def check(self) -> None:
        """Raises Changed when what was read since the start cannot be trusted."""
        if self._before is not None and (
            _size(self._path + b"-shm") is not None or self._state() != self._before
        ):
            raise Changed(os.fsdecode(self._path))

    def _state(self) -> Tuple[int, int, int]:
        found = os.stat(self._path)
        return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _owners_left_alone() -> Iterator[None]:
    """As root SQLite gives the log the owner of the database, which changes its ctime even where it has that owner.

    It asks for the effective user; files are opened as the file system's, setfsuid(2).
    """
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(_NOBODY)
    except OSError:  # a user namespace that has nobody else
        yield
        return
    try:
        ctypes.CDLL(None).setfsuid(0)
        yield
    finally:
        os.seteuid(0)


def _size(path: bytes) -> Optional[int]:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None
