"""What a secondary keeps of its session for the day when the primary's side has lost it.

The settings, as a file has them, and in the index the mark. And where the index was at home: inode numbers mean
nothing in a copy.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from typing import Optional

from replication.secondary import layout, sql
from replication.secondary.handles import stat_at
from replication.secondary.index import Index

_MOST = 1 << 20
_LOOKED_AT = 200  # names, when an index may have been copied


def keep_settings(hidden_fd: int, text: str) -> None:
    """Replace the settings that are kept, if they are others. Raises OSError."""
    if read_settings(hidden_fd) == text:
        return
    aside = layout.SETTINGS + b".%d" % os.getpid()
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=hidden_fd)
    with open(fd, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(fd)
    os.rename(aside, layout.SETTINGS, src_dir_fd=hidden_fd, dst_dir_fd=hidden_fd)


def read_settings(hidden_fd: int) -> Optional[str]:
    """The settings that are kept; None: none are."""
    try:
        fd = os.open(layout.SETTINGS, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=hidden_fd)
    except OSError:
        return None
    with open(fd, "rb") as file:
        return file.read(_MOST).decode("utf-8", "surrogateescape")


class Copied(sqlite3.DatabaseError):
    """The index was copied here by whatever copies files: none of its inode numbers is of this tree.

    ``mark``: the one in it. Of what stands here nothing newer is known.
    """

    def __init__(self, mark: Optional[str]) -> None:
        super().__init__("the index was copied here")
        self.mark = mark


def check_home(index: Index, hidden_fd: int) -> None:
    """Note where the index is at home, or raise Copied. Within a transaction.

    A snapshot of the file system has the same inodes, and whoever makes a copy may have renumbered its index: so where the
    file is another one it is looked whether what it says of some names is true.
    """
    home = _inode_of(hidden_fd, layout.INDEX)
    if index.meta.get("home") not in (None, home) and not _is_true_here(index, hidden_fd):
        raise Copied(index.meta.get("mark"))
    if index.meta.get("home") != home:
        index.set_meta("home", home)


def _is_true_here(index: Index, hidden_fd: int) -> bool:
    """Whether all that stands at some names, those at the root first, are the inodes that the index says."""
    directories = [(layout.ROOT_ID, b"../")]
    left = _LOOKED_AT
    while directories and left > 0:
        id_, path = directories.pop(0)
        for name, inode, ino in index.db.execute(sql.SOME_ENTRIES, (id_, left)).fetchall():
            left -= 1
            try:
                found = os.stat(path + name, dir_fd=hidden_fd, follow_symlinks=False)
            except OSError:
                continue
            if found.st_ino != ino:
                return False
            if stat.S_ISDIR(found.st_mode):
                directories.append((inode, path + name + b"/"))
    return True


def _inode_of(dir_fd: int, name: bytes) -> str:
    """Which inode this is, and no later one with its number: the same in a snapshot, and after whatever mount.

    Without opening it: to close it would let go of SQLite's locks (sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        found = stat_at(dir_fd, name)
    except AttributeError:  # a C library without statx
        return str(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino)
    return "{}:{}".format(found.ino, found.btime_ns)
