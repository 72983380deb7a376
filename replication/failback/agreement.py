"""What a promoted root knows of the old primary: which of its objects had which state there, and what was changed here since.

The index of the root has, of each object, its inode number here, and inode number and ctime of that state on the old
primary. The tree is scanned once, into a scratch database beside the session's state, and the two are joined by
inode number: memory is bounded by a portion. An object whose ctime here is from before the promotion, and whose size, mtime,
owner and mode are those that were replicated, was not changed here since. Where the clock was set meanwhile nothing is taken for that.
What was recorded since (recorded.py) names objects that were changed, whatever their times say.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from replication.changelog.record import Kind
from replication.failback import recorded_sql
from replication.failback.recorded import Changes
from replication.secondary.attributes import attributes_at
from replication.secondary.filters import Filters
from replication.secondary.transfers import content_digest
from replication.volume.directory import DirectoryVolume, VanishedError
from replication.volume.identity import identify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from replication.failback.promoted import PromotedRoot
    from replication.failback.recorded import Recorded

PORTION = 2_000
_HERE = """CREATE TABLE here(ino INTEGER PRIMARY KEY, gfid BLOB NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL,
    gid INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, path BLOB NOT NULL)"""
# Of an object that is here completely, or whose content is: what the old primary has of it, as far as is known.
_OBJECTS = """FROM idx.inode AS i LEFT JOIN here AS h ON h.ino = i.ino AND h.mode & 61440 = i.mode & 61440
    LEFT JOIN recorded AS r ON r.ino = i.ino WHERE i.ino <> 0 AND i.pino <> 0 AND i.limbo IS NULL AND i.id <> 1"""
_ROWS = (
    """SELECT i.id, h.gfid, i.mode, i.uid, i.gid, i.size, i.mtime, i.atime, i.rdev, i.pino, abs(i.pctime), i.dirty, i.pctime,
    h.ino, h.ctime, h.mode, h.uid, h.gid, h.size, h.mtime, h.path, r.kinds """
    + _OBJECTS
    + " AND i.id > ? ORDER BY i.id LIMIT ?"
)
_NAMES = """SELECT e.parent, e.name, e.inode FROM idx.entry AS e JOIN idx.inode AS i ON i.id = e.inode
    WHERE i.id BETWEEN ? AND ? AND i.ino <> 0 AND i.pino <> 0 AND i.limbo IS NULL AND NOT EXISTS (SELECT 1 FROM idx.held AS d
        WHERE d.parent = e.parent AND d.name = e.name AND d.inode = e.inode)"""


@dataclass(frozen=True, slots=True)
class Changed:
    """What is to be sent back, by what is known before the other side is asked."""

    new: int = 0  # objects that the old primary never had
    changed: int = 0  # whose content changed here
    removed: int = 0
    bytes: int = 0  # of files that are new or changed, whole


class Agreement:
    """One scan of a promoted root, and what was ``recorded`` there since. Close it, and it leaves nothing."""

    def __init__(self, scratch: Path, root: PromotedRoot, recorded: Recorded | None = None) -> None:
        self.root = root
        self.recorded: Changes | None = None
        self._scratch = scratch
        self._times_count = not root.clock_was_set()
        self._forget()
        self._db = sqlite3.connect(scratch, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        for table in (_HERE, "CREATE TABLE known(ino INTEGER PRIMARY KEY)", *recorded_sql.TABLES):
            self._db.execute(table)
        self._db.execute("ATTACH ? AS idx", (root.index,))
        self._db.execute("INSERT OR IGNORE INTO known SELECT ino FROM idx.inode WHERE ino <> 0 AND id <> 1")
        self._scan()
        if recorded is not None:
            self._take_in(recorded)

    def close(self) -> None:
        self._db.close()
        self._forget()

    def _forget(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._scratch)

    def _scan(self) -> None:
        filters = Filters(self.root.filters)
        with closing(DirectoryVolume(os.fsencode(self.root.path))) as volume:
            pending = [b""]
            self._db.execute("BEGIN")
            while pending:
                path = pending.pop()
                try:
                    fd = os.dup(volume.root_fd) if not path else volume.open_dir_unchecked(path)
                except VanishedError:  # the tree is in use; the crawl that comes finds what it became
                    continue
                try:
                    for name in volume.names(fd, is_root=not path):
                        below = os.path.join(path, name)
                        if (row := self._look(fd, name)) is None or (
                            filters and filters.excludes(below, stat.S_ISDIR(row[2]))
                        ):
                            continue
                        self._db.execute(
                            "INSERT OR REPLACE INTO here VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row[:8], below)
                        )
                        if stat.S_ISDIR(row[2]):
                            pending.append(below)
                        elif row[8] > 1:
                            self._db.execute("INSERT OR REPLACE INTO other VALUES(?, ?)", (below, row[0]))
                finally:
                    os.close(fd)
            self._db.execute("COMMIT")

    def _look(self, dir_fd: int, name: bytes) -> tuple[int, bytes, int, int, int, int, int, int, int] | None:
        try:
            gfid, s = identify(dir_fd, name)
        except FileNotFoundError:
            return None
        if s.mount_root:
            return None
        return s.ino, gfid, s.mode, s.uid, s.gid, s.size, s.mtime_ns, s.ctime_ns, s.nlink

    def _take_in(self, recorded: Recorded) -> None:
        """Which of the objects that were found have a record, under the names at which they were found."""
        recorded.catch_up()  # what happened to an object before it was looked at is in it by then
        db = self._db
        db.execute("BEGIN")
        for mention in recorded.read():
            db.execute(recorded_sql.ADD, mention)
        db.create_function("below", 2, lambda path, name: path + b"/" + name, deterministic=True)
        db.create_function("beyond", 1, lambda path: path + b"0", deterministic=True)  # all that is below
        for statement in recorded_sql.FIND if db.execute("SELECT 1 FROM named").fetchone() else ():
            db.execute(statement)
        (names,) = db.execute("SELECT count(*) FROM named WHERE ours").fetchone()
        since = recorded.since_ns
        self.recorded = Changes(names, None if since is None else since / 1e9, not recorded.whole)
        db.execute("COMMIT")

    def changed(self) -> Changed:
        """How much is to be sent back."""
        done = self.root.done_ns
        new, new_bytes = self._db.execute(
            "SELECT count(*), coalesce(sum(CASE WHEN mode & 61440 = 32768 THEN size ELSE 0 END), 0) FROM here "
            "WHERE NOT EXISTS (SELECT 1 FROM known WHERE known.ino = here.ino)"
        ).fetchone()
        changed, changed_bytes = self._db.execute(
            f"SELECT count(*), coalesce(sum(h.size), 0) {_OBJECTS} AND h.ino IS NOT NULL AND h.mode & 61440 = 32768 "
            "AND ((h.ctime >= ? AND (h.size <> i.size OR h.mtime <> i.mtime)) OR r.kinds & ?)",
            (done, int(Kind.D)),
        ).fetchone()
        (removed,) = self._db.execute(f"SELECT count(*) {_OBJECTS} AND h.ino IS NULL").fetchone()
        return Changed(new, changed, removed, new_bytes + changed_bytes)

    def portions(self) -> Iterator[tuple[list[list[Any]], list[list[Any]]]]:
        """Rows and names as `seed_rows` takes them."""
        after = 0
        while True:
            found = self._db.execute(_ROWS, (after, PORTION)).fetchall()
            if not found:
                return
            names = self._db.execute(_NAMES, (found[0][0], found[-1][0])).fetchall()
            yield (
                [self._row(*each) for each in found],
                [[parent, name.decode("utf-8", "surrogateescape"), inode] for parent, name, inode in names],
            )
            after = found[-1][0]

    def _row(
        self, id_: int, gfid: bytes | None, mode: int, uid: int, gid: int, size: int, mtime: int, atime: int, rdev: int, pino: int,
        pctime: int, dirty: int, complete: int, ino: int | None, ctime: int | None, mode_here: int, uid_here: int, gid_here: int,
        size_here: int, mtime_here: int, path: bytes, recorded: int | None,
    ) -> list[Any]:  # fmt: skip
        before = ctime is not None and ctime < self.root.since_ns and self._times_count and recorded is None
        same = before and (mode, uid, gid) == (mode_here, uid_here, gid_here)
        target = None
        if stat.S_ISREG(mode):
            same = same and (size, mtime) == (size_here, mtime_here) and not dirty
        elif not stat.S_ISDIR(mode) and not before:
            gfid = None  # it may be another one by now, with the same number: it is made anew there
        elif stat.S_ISLNK(mode):
            target = self._target(path)
        if gfid is None:  # it was removed here: its name there is ours to remove
            gfid = blake2b(b"removed %d" % id_, digest_size=16).digest()
        return [
            id_, gfid.hex(), mode, uid, gid,
            # Of what is wanted, or may have been lost here, no state of there is known to be the same.
            -1 if dirty and stat.S_ISREG(mode) else size,
            mtime, atime, rdev, pino, 0 if dirty else pctime, ino or 0,
            ctime if same and complete > 0 else 0, target,
        ]  # fmt: skip

    def _target(self, path: bytes) -> str | None:
        try:
            return os.fsdecode(os.readlink(os.path.join(os.fsencode(self.root.path), path)))
        except OSError:
            return None

    def digest_of(self, inode: int) -> str | None:
        """Of the content of a file that was not changed here since; None: it was, or cannot be read."""
        found = self._db.execute(
            "SELECT h.ino, h.ctime, h.path FROM idx.inode AS i JOIN here AS h ON h.ino = i.ino WHERE i.id = ? AND i.dirty = 0",
            (inode,),
        ).fetchone()
        if (
            found is None
            or found[1] >= self.root.since_ns
            or not self._times_count
            or self.was_recorded(found[0])
        ):
            return None
        try:
            fd = os.open(
                os.path.join(os.fsencode(self.root.path), found[2]),
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        except OSError:
            return None
        try:
            here = os.fstat(fd)
            digest = content_digest(fd)
            same = here.st_ino == found[0] and os.fstat(fd).st_ctime_ns == found[1]
            return digest if same and stat.S_ISREG(here.st_mode) else None
        except OSError:
            return None
        finally:
            os.close(fd)

    def attributes_of(self, inode: int) -> dict[str, str] | None:
        """The replicated attributes that an object in the index has here, in base64; None: it is gone, or cannot be asked."""
        found = self._db.execute(
            "SELECT h.ino, h.path FROM idx.inode AS i JOIN here AS h ON h.ino = i.ino AND h.mode & 61440 = i.mode & 61440 "
            "WHERE i.id = ?",
            (inode,),
        ).fetchone()
        if found is None:
            return None
        directory, name = os.path.split(os.path.join(os.fsencode(self.root.path), found[1]))
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return attributes_at(fd, name, found[0], trusted=os.geteuid() == 0)
        finally:
            os.close(fd)

    def state_of(self, inode: int) -> tuple[str, int, int]:
        """Of an object in the index: "same", "changed" or "removed" here since the promotion, size and mtime (ns).

        Of a directory the ctime says little: it changed where its mode or owner did.
        """
        found = self._db.execute(
            "SELECT h.mode, h.ctime, h.size, h.mtime, (h.mode, h.uid, h.gid) <> (i.mode, i.uid, i.gid), i.ino FROM idx.inode AS i "
            "LEFT JOIN here AS h ON h.ino = i.ino AND h.mode & 61440 = i.mode & 61440 WHERE i.id = ?",
            (inode,),
        ).fetchone()
        if found is None or found[0] is None:
            return "removed", 0, 0
        mode, ctime, size, mtime, other, ino = found
        changed = ctime > self.root.done_ns and (other or not stat.S_ISDIR(mode))
        return "changed" if changed or self.was_recorded(ino) else "same", size, mtime

    def was_recorded(self, ino: int) -> bool:
        """Whether what has this inode number here was changed since the promotion, as its record says."""
        return (
            self._db.execute("SELECT 1 FROM recorded WHERE ino = ? AND kinds <> 0", (ino,)).fetchone()
            is not None
        )

    def was_replicated(self, ino: int) -> bool:
        """Whether what has this inode number here came from the old primary."""
        return self._db.execute("SELECT 1 FROM known WHERE ino = ?", (ino,)).fetchone() is not None
