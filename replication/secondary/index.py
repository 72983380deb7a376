"""The index: which gfid has which names here, and which state of it. Rows, batched look-ups, transactions.

One SQLite write transaction, together with a lock file, guards every change of the namespace: several
agent processes may serve one root.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from typing import Any, Container, Dict, Iterable, List, Optional, Sequence, Tuple

from replication.secondary import sql
from replication.secondary.layout import ROOT_GFID, ROOT_ID

Key = Tuple[int, bytes]  # a name: (id of its directory, bytes)
UNCERTAIN = -1  # as pctime: metadata is to come, of a version that is not certain


def signed(ino: int) -> int:
    """An inode number as SQLite can hold it: some network file systems use all 64 bits."""
    return ino - (1 << 64) if ino >> 63 else ino


def unsigned(ino: int) -> int:
    """The same as the file system has it."""
    return ino & 0xFFFF_FFFF_FFFF_FFFF


class Row:
    """One inode; see sql.py for the columns. ``new`` and ``changed``: what is still to be written."""

    __slots__ = (
        "id", "gfid", "mode", "uid", "gid", "size", "mtime", "atime", "rdev", "ino", "dirty", "pino",
        "pctime", "listed", "digest", "limbo", "gen", "got", "new", "changed",
    )  # fmt: skip

    def __init__(
        self, id_: int, gfid: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, atime: int, rdev: int,
        ino: int = 0, dirty: int = 0, pino: int = 0, pctime: int = 0, listed: int = 0,
        digest: Optional[bytes] = None, limbo: Optional[int] = None, gen: int = 0, got: int = 0,
    ) -> None:  # fmt: skip
        self.id = id_
        self.gfid = gfid
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime = mtime
        self.atime = atime
        self.rdev = rdev
        self.ino = unsigned(ino)
        self.dirty = dirty
        self.pino = pino
        self.pctime = pctime
        self.listed = listed
        self.digest = digest
        self.limbo = limbo
        self.gen = gen
        self.got = got
        self.new = False
        self.changed = False

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def takes(self, ticket: int) -> bool:
        """Whether content that was read for the look of this number is wanted here (0: read for any).

        Nothing may be wanted any more: a twin was first. Or what came meanwhile was read for a later look,
        and must not be replaced by this.
        """
        return bool(self.dirty) and (not ticket or ticket >= self.got)

    def took(self, ticket: int) -> None:
        """Such content is here now. It stays wanted while a later look asked for it."""
        if not ticket or ticket >= self.dirty:
            self.dirty = 0
        self.got = max(self.got, ticket)

    def insert_values(self) -> Tuple[Any, ...]:
        return (
            self.id, self.gfid, self.mode, self.uid, self.gid, self.size, self.mtime, self.atime, self.rdev, signed(self.ino),
            self.dirty, self.pino, self.pctime, self.listed, self.digest, self.limbo, self.gen, self.got,
        )  # fmt: skip

    def update_values(self) -> Tuple[Any, ...]:
        return (
            self.mode, self.uid, self.gid, self.size, self.mtime, self.atime, self.rdev, signed(self.ino),
            self.dirty, self.pino, self.pctime, self.listed, self.digest, self.limbo, self.gen, self.got, self.id,
        )  # fmt: skip


def is_object_of(row: Row, found: os.stat_result) -> bool:
    """Whether this is the object of an inode. Numbers are used again: what has another type is somebody else's."""
    return found.st_ino == row.ino and stat.S_IFMT(found.st_mode) == stat.S_IFMT(row.mode)


class Index:
    """A connection to the index file. Raises sqlite3.Error; a damaged file is a sqlite3.DatabaseError."""

    keeps_inodes = False  # an object goes on as what it is (gfids.py): it is not replaced by a new one

    def __init__(self, path: bytes) -> None:
        self._use(sqlite3.connect(os.fsdecode(path), isolation_level=None, cached_statements=256))
        for pragma in sql.PRAGMAS:
            self.db.execute(pragma)
        self.db.execute(sql.SEEN)

    def _use(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.db.text_factory = bytes
        self.meta: Dict[str, Any] = {}

    @classmethod
    def looking(cls, db: sqlite3.Connection) -> Index:
        """On a connection that cannot write: for look-ups only."""
        index = cls.__new__(cls)
        index._use(db)
        index.read_meta()
        return index

    def create(self, root: Row) -> bool:
        """Tables, and the row of the root, where they are missing; whether they were. Within a transaction."""
        for statement in sql.SCHEMA:
            self.db.execute(statement)
        self.read_meta()
        self.meta.setdefault("next_id", ROOT_ID + 1)
        if self.meta.get("format") is not None:
            return False
        self.set_meta("format", sql.FORMAT)
        self.set_meta("next_id", ROOT_ID + 1)
        self.set_meta("gen", 1)
        self.set_meta("index_id", os.urandom(8).hex())
        self.save([root], [], [])
        return True

    def close(self) -> None:
        self.db.close()

    # ---- transactions

    def begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.read_meta()

    def commit(self) -> None:
        self.db.execute("COMMIT")

    def rollback(self) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def read_meta(self) -> None:
        found = self.db.execute(sql.META)
        self.meta = {k.decode(): v.decode() if isinstance(v, bytes) else v for k, v in found}

    def set_meta(self, key: str, value: Any) -> None:
        self.meta[key] = value
        self.db.execute(sql.SET_META, (key, value))

    # ---- looking up

    def chunked(self, statement: str, values: Sequence[Any], *before: Any) -> Iterable[Tuple[Any, ...]]:
        size = sql.CHUNK
        for start in range(0, len(values), size):
            chunk = tuple(values[start : start + size])
            if len(chunk) < size:
                chunk += (None,) * (size - len(chunk))
            yield from self.db.execute(statement, before + chunk)

    def inodes(self, gfids: Iterable[bytes]) -> Dict[bytes, Row]:
        wanted = list(gfids)
        if len(wanted) == 1:
            return {t[1]: Row(*t) for t in self.db.execute(sql.INODE_BY_GFID, wanted)}
        return {t[1]: Row(*t) for t in self.chunked(sql.INODES_BY_GFID, wanted)}

    def inode(self, gfid: bytes) -> Optional[Row]:
        found = self.db.execute(sql.INODE_BY_GFID, (gfid,)).fetchone()
        return Row(*found) if found else None

    def inode_by_id(self, inode: int) -> Optional[Row]:
        found = self.db.execute(sql.INODE_BY_ID, (inode,)).fetchone()
        return Row(*found) if found else None

    def inodes_by_id(self, ids: Iterable[int]) -> Dict[int, Row]:
        return {t[0]: Row(*t) for t in self.chunked(sql.INODES_BY_ID, list(ids))}

    def entry(self, parent: int, name: bytes) -> Optional[int]:
        found = self.db.execute(sql.ENTRY, (parent, name)).fetchone()
        return found[0] if found else None

    def at(self, path: bytes) -> Optional[int]:
        """The inode at a path relative to the root."""
        inode: Optional[int] = ROOT_ID
        for name in path.split(b"/") if path else ():
            inode = self.entry(inode, name) if inode is not None else None
        return inode

    def entries(self, parent: int, names: Sequence[bytes]) -> Dict[bytes, int]:
        """Those of ``names`` which the directory has."""
        if len(names) < 8:
            return {n: i for n in names for (i,) in self.db.execute(sql.ENTRY, (parent, n))}
        return dict(self.chunked(sql.ENTRIES_BY_NAME, names, parent))

    def entries_of(self, parent: int, limit: int) -> Dict[bytes, int]:
        """At most ``limit`` entries of a directory."""
        return dict(self.db.execute(sql.ENTRIES_OF, (parent, limit)))

    def names(self, ids: Iterable[int]) -> Dict[int, List[Key]]:
        """All names of each inode; inodes without a name are not in it."""
        found: Dict[int, List[Key]] = {}
        for inode, parent, name in self.chunked(sql.NAMES_BY_INODE, list(ids)):
            found.setdefault(inode, []).append((parent, name))
        return found

    def names_of(self, inode: int) -> List[Key]:
        return list(self.db.execute(sql.NAMES_OF, (inode,)))

    def directories_among(self, ids: Sequence[int]) -> List[int]:
        """Those of these inodes which are directories."""
        return [i for (i,) in self.chunked(sql.DIRECTORIES_AMONG, ids)]

    def holds(self) -> bool:
        """Whether names stand here that the primary has no more (held.py)."""
        try:
            return self.db.execute(sql.ANY_HELD).fetchone() is not None
        except sqlite3.OperationalError:  # an index from before there were any, which is only looked at
            return False

    # ---- changing

    def take_ids(self, amount: int) -> int:
        """The first of ``amount`` new inode ids."""
        first: int = self.meta["next_id"]
        self.set_meta("next_id", first + amount)
        return first

    def save(self, rows: Iterable[Row], add: List[Tuple[int, bytes, int]], drop: Iterable[Key]) -> None:
        """Write rows that are new or changed; drop entries, then add entries."""
        new: List[Tuple[Any, ...]] = []
        changed: List[Tuple[Any, ...]] = []
        for row in rows:
            if row.new:
                new.append(row.insert_values())
            elif row.changed:
                changed.append(row.update_values())
            row.new = row.changed = False
        if new:
            self.db.executemany(sql.SAVE_INODE, new)
        if changed:
            self.db.executemany(sql.UPDATE_INODE, changed)
        dropped = list(drop)
        if dropped:
            self.db.executemany(sql.DROP_ENTRY, dropped)
        if add:
            self.db.executemany(sql.SAVE_ENTRY, add)

    def doubt(self, inode: int) -> None:
        """Take nothing for granted of it, when it is next looked at."""
        self.db.execute(sql.DOUBT_ONE, (inode,))

    def reset_digests(self, directories: Iterable[int]) -> None:
        self.db.executemany(sql.RESET_DIGEST, [(d,) for d in directories])

    def drop(self, rows: Iterable[Row]) -> None:
        """Drop inodes, and of directories all that is below them. What has a name stays."""
        for row in rows:
            if row.is_dir and not self.names_of(row.id):
                self.forget_below(row.id)
            self.db.execute(sql.DROP_NAMELESS, (row.id,))

    def forget_below(self, directory: int, but: Container[Key] = ()) -> None:
        """Drop all below a directory whose object is lost; inodes with names elsewhere stay. Not while a plan adds names that are not saved.

        ``but``: names that it has again by now.
        """
        children = self.db.execute(sql.ENTRIES_OF, (directory, -1)).fetchall()
        gone = [(name, inode) for name, inode in children if (directory, name) not in but]
        self.db.executemany(sql.DROP_ENTRY, [(directory, name) for name, _ in gone])
        self.db.execute(sql.DROP_SHADOWS_OF, (directory,))
        lost = [inode for _, inode in gone]
        for below in self.directories_among(lost):
            for d in self.db.execute(sql.DIRECTORIES_BELOW, (below,)).fetchall():
                children = self.db.execute(sql.CHILDREN, d).fetchall()
                self.db.execute(sql.DROP_ENTRIES_OF, d)
                self.db.execute(sql.DROP_SHADOWS_OF, d)
                self.db.executemany(sql.DROP_NAMELESS, children)
        self.db.executemany(sql.DROP_NAMELESS, [(inode,) for inode in lost])


def root_row(found: os.stat_result) -> Row:
    """The row of a root that was just taken over."""
    row = Row(
        ROOT_ID, ROOT_GFID, found.st_mode, found.st_uid, found.st_gid, 0,
        found.st_mtime_ns, found.st_atime_ns, 0, found.st_ino,
    )  # fmt: skip
    row.new = True
    return row
