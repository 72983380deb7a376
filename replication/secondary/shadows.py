"""Shadows: what stands at a name until its new object is there.

A name stands for another inode now, whose content has still to come. The old object stays at the name, so that a reader
finds the old content until the new one is placed over it by one rename. It is no longer what the index says of that
name, so its inode number is kept in a table of its own: what stands there and has this number is ours to
replace, anything else is foreign as everywhere. An entry has a shadow only while its inode has no object.
"""

from __future__ import annotations

import os
from typing import Iterable, List

from replication.secondary import faults, sql
from replication.secondary.index import Key, signed, unsigned
from replication.secondary.tree import Tree


class Shadows:
    """The table of one root. Its statements belong to the transaction under way; each raises sqlite3.Error."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def any(self) -> bool:
        return self._tree.index.db.execute(sql.ANY_SHADOW).fetchone() is not None

    def at(self, key: Key) -> int:
        """The inode number of a name's shadow; 0 when it has none."""
        found = self._tree.index.db.execute(sql.SHADOW, key).fetchone()
        return unsigned(found[0]) if found else 0

    def of(self, keys: Iterable[Key]) -> List[Key]:
        """Those names which have one."""
        return [key for key in keys if self.at(key)] if self.any() else []

    def holds(self, ino: int) -> bool:
        """Whether an inode is the shadow of any name. Looks at all of them."""
        return self._tree.index.db.execute(sql.SHADOW_OF, (signed(ino),)).fetchone() is not None

    def cast(self, key: Key, ino: int) -> None:
        """What stands at a name stays there."""
        self._tree.index.db.execute(sql.SAVE_SHADOW, (*key, signed(ino)))

    def forget(self, keys: Iterable[Key]) -> None:
        """These names have none any more; nothing is removed."""
        if self.any():
            self._tree.index.db.executemany(sql.DROP_SHADOW, keys)

    def stands(self, key: Key) -> bool:
        """Whether what stands at a name is its shadow. Raises LostDirectory, OSError."""
        ino = self.at(key)
        if not ino:
            return False
        try:
            found = os.stat(key[1], dir_fd=self._tree.fd(key[0]), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return found.st_ino == ino and found.st_dev == self._tree.device

    def lift(self, key: Key) -> None:
        """Remove a name's shadow: nothing comes there that could replace it. Raises LostDirectory, OSError."""
        if self.stands(key):
            os.unlink(key[1], dir_fd=self._tree.changing(key[0]))
            faults.point("lifted")
        self.forget([key])
