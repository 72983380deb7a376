"""What an old primary has, compared with what is known of it on the side that was promoted. Changes nothing.

What has the inode number and the ctime that are known is agreed on. A regular file with the size and the mtime that are
known, but another ctime, or whose content a crash may have taken, has to be proved by its digest; without proof it counts as changed.
Extended attributes of what has another ctime are compared with those of there.

findings: ``new`` (nobody knows it there), ``changed`` (content), ``replaced`` (another object has the name),
``removed``, ``renamed``, ``linked`` (one more name), ``attributes``; ``unproven`` only until it is proved.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from replication.secondary import agreeing_sql, layout, sql
from replication.secondary.attributes import attributes_at
from replication.secondary.completion import path_of
from replication.secondary.filters import Filters
from replication.secondary.index import Index, Key, Row, is_object_of
from replication.secondary.metadata import is_replicated
from replication.secondary.mounting import drop_pages
from replication.secondary.transfers import content_digest

AT_ONCE = 2_000
TURN_S = 2.0  # a request takes no longer, so that its answer says that we live
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 100_000
_LOST_FOUND = b"lost+found"  # the file system's
_SET_BACK = (b"attributes", b"renamed", b"linked")  # what stays, and gets the attributes of there
_ATTRIBUTES_AT_ONCE = 4 << 20  # bytes


class Comparison:
    """One comparison of the tree at ``root_fd`` with ``index``, which holds what is known of it.

    ``doubt_ns``: what changed since then may have lost its content where this host restarted later.
    """

    def __init__(self, root_fd: int, index: Index, filters: Filters, doubt_ns: int) -> None:
        self._root_fd = root_fd
        self._device = os.fstat(root_fd).st_dev
        self._index = index
        self._filters = filters
        booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._doubted = (doubt_ns, booted_ns)
        for statement in agreeing_sql.TABLES:
            index.db.execute(statement)

    def know(self, objects: List[Tuple[int, int, Optional[bytes]]]) -> None:
        """Inode, ctime (0: not known) and target of a symlink (None: not known) of what is in the index."""
        self._index.db.executemany("INSERT INTO agreed(inode, ctime, target) VALUES(?, ?, ?)", objects)

    def begin(self) -> None:
        """Begin, or begin again."""
        db = self._index.db
        db.execute("DELETE FROM finding")
        db.execute("DELETE FROM pending")
        db.execute("UPDATE agreed SET found = 0")
        db.execute("INSERT INTO pending VALUES(?)", (layout.ROOT_ID,))

    def go_on(self) -> Dict[str, Any]:
        """For a while. ``done``: all was looked at."""
        db = self._index.db
        until = time.monotonic() + TURN_S
        while time.monotonic() < until:
            found = db.execute("SELECT inode FROM pending LIMIT 1").fetchone()
            if found is None and not self._follow_renames():
                agreed, known = db.execute("SELECT coalesce(sum(found), 0), count(*) FROM agreed").fetchone()
                return {"done": True, "agreed": agreed, "known": known}
            if found is not None:
                self._directory(found[0])
                db.execute("DELETE FROM pending WHERE inode = ?", found)
        return {"done": False}

    def is_over(self) -> bool:
        """Whether everything was looked at, and proved or not."""
        db = self._index.db
        return (
            db.execute("SELECT 1 FROM pending LIMIT 1").fetchone() is None
            and db.execute("SELECT 1 FROM finding WHERE proof LIMIT 1").fetchone() is None
        )

    def findings(self, after: int) -> Dict[str, Any]:
        """[path, what, inode there or null, mode, uid, gid, size, mtime (ns), path before, attributes or null] from ``after`` on, and where to go on."""
        rows = self._index.db.execute(
            """SELECT n, parent, name, ino, what, inode, mode, uid, gid, size, mtime, before FROM finding
            WHERE n > ? ORDER BY n LIMIT ?""",
            (after, AT_ONCE),
        )
        found: List[List[Any]] = []
        last, room = None, _ATTRIBUTES_AT_ONCE
        for n, parent, name, ino, what, *about, before in rows:
            attributes = self._attributes((parent, name), ino) if what in _SET_BACK else None
            room -= sum(map(len, (attributes or {}).values()))
            was = None if before is None else os.fsdecode(before)
            found.append([path_of(self._index, (parent, name)), what.decode(), *about, was, attributes])
            last = n
            if room < 0:
                break
        return {"findings": found, "next": last}

    def _attributes(self, key: Key, ino: int) -> Optional[Dict[str, str]]:
        directory = self._open(key[0])
        if directory is None:
            return None
        try:
            return attributes_at(directory, key[1], ino, trusted=os.geteuid() == 0)
        finally:
            os.close(directory)

    # ---- proof

    def unproven(self, after: int) -> Dict[str, Any]:
        """[number, inode] of findings that have to be proved; where to go on."""
        rows = self._index.db.execute(
            "SELECT n, inode FROM finding WHERE proof AND n > ? ORDER BY n LIMIT ?", (after, AT_ONCE)
        ).fetchall()
        return {"items": [list(row) for row in rows], "next": rows[-1][0] if rows else None}

    def prove(self, items: List[Any], *, trusted: bool) -> int:
        """``items``: [number, digest there, or null: it changed there, is gone, or is a directory; attributes there, or null: not known].
        ``trusted``: whether that side sees those of this namespace. How many were done within a while.
        """
        db = self._index.db
        until = time.monotonic() + TURN_S
        done = 0
        for n, digest, attributes in items:
            if time.monotonic() > until:
                break
            parent, name, what, ino, mode = db.execute(
                "SELECT parent, name, what, ino, mode FROM finding WHERE n = ?", (n,)
            ).fetchone()
            if stat.S_ISREG(mode) and (digest is None or self._digest((parent, name)) != digest):
                db.execute("UPDATE finding SET what = 'changed', proof = 0 WHERE n = ?", (n,))
            elif what != b"unproven":
                db.execute("UPDATE finding SET proof = 0 WHERE n = ?", (n,))
            elif self._differ((parent, name), ino, attributes, trusted):
                db.execute("UPDATE finding SET what = 'attributes', proof = 0 WHERE n = ?", (n,))
            else:
                db.execute("DELETE FROM finding WHERE n = ?", (n,))
            done += 1
        return done

    def _differ(self, key: Key, ino: int, there: Optional[Dict[str, str]], trusted: bool) -> bool:
        """Whether attributes that are here would be lost, or others come."""
        here = self._attributes(key, ino)
        if there is None or here is None:
            return False
        return any(
            here.get(name) != there.get(name)
            for name in set(here).union(there)
            if is_replicated(name, trusted and os.geteuid() == 0)
        )

    def _digest(self, key: Key) -> Optional[str]:
        directory = self._open(key[0])
        if directory is None:
            return None
        try:
            fd = os.open(key[1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            return None
        finally:
            os.close(directory)
        try:
            drop_pages(fd)
            return content_digest(fd)
        except OSError:
            return None
        finally:
            os.close(fd)

    # ---- looking

    def _open(self, directory: int) -> Optional[int]:
        """A descriptor of a directory that was found here; None: it is not there any more."""
        names: List[bytes] = []
        at = directory
        while at != layout.ROOT_ID:
            keys = self._index.names_of(at)
            if not keys or len(names) > _DEEPEST:
                return None
            at = keys[0][0]
            names.append(keys[0][1])
        fd = os.dup(self._root_fd)
        for name in reversed(names):
            try:
                below = os.open(name, _DIR, dir_fd=fd)
            except (FileNotFoundError, NotADirectoryError):
                return None
            finally:
                os.close(fd)
            fd = below
        return fd

    def _directory(self, directory: int) -> None:
        fd = self._open(directory)
        if fd is None:
            return
        db = self._index.db
        try:
            with os.scandir(fd) as found:
                for names in _portions(os.fsencode(entry.name) for entry in found):
                    self._names(directory, fd, names)
                    db.executemany(sql.ADD_SEEN, [(directory, name) for name in names])
        finally:
            os.close(fd)
        while True:
            unseen = [name for (name,) in db.execute(sql.UNSEEN, (directory, AT_ONCE))]
            if not unseen:
                break
            for name, inode in self._index.entries(directory, unseen).items():
                self._note((directory, name), "removed", inode, None)
            db.executemany(sql.ADD_SEEN, [(directory, name) for name in unseen])
        db.execute(sql.FORGET_SEEN, (directory,))

    def _names(self, directory: int, fd: int, names: List[bytes]) -> None:
        known = self._index.entries(directory, names)
        rows = self._index.inodes_by_id(known.values())
        agreed = {t[0]: (t[1], t[2]) for t in self._index.chunked(agreeing_sql.AGREED, list(known.values()))}
        for name in names:
            if directory == layout.ROOT_ID and (
                name == layout.HIDDEN or (name == _LOST_FOUND and name not in known)
            ):
                continue
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            key = (directory, name)
            if found.st_dev != self._device or self._is_left_out(key, found):  # or another file system's
                continue
            row = rows.get(known.get(name, 0))
            if row is None:
                self._note(key, "new", None, found)
            elif not is_object_of(row, found):
                self._note(key, "replaced", row.id, found)
            else:
                self._object(key, row, found, fd, *agreed.get(row.id, (0, None)))

    def _is_left_out(self, key: Key, found: os.stat_result) -> bool:
        return bool(self._filters) and self._filters.excludes(
            os.fsencode(path_of(self._index, key)), stat.S_ISDIR(found.st_mode)
        )

    def _object(
        self, key: Key, row: Row, found: os.stat_result, fd: int, ctime: int, target: Optional[bytes]
    ) -> None:
        """It is the object that was there; is it in the state that is known?"""
        same = ctime > 0 and found.st_ctime_ns == ctime
        if row.is_file:
            if (found.st_size, found.st_mtime_ns) != (row.size, row.mtime):
                self._note(key, "changed", row.id, found)
                return
            doubt_ns, booted_ns = self._doubted
            if same and doubt_ns <= found.st_ctime_ns < booted_ns:
                same = False
                ctime = 0  # it may be what it says; nothing tells otherwise
        elif not row.is_dir and not same and not _is_alike(row, found, fd, key[1], target):
            self._note(key, "replaced", row.id, found)
            return
        self._index.db.execute(agreeing_sql.FIND, (found.st_ctime_ns, row.id))
        if row.is_dir:
            self._index.db.execute("INSERT OR IGNORE INTO pending VALUES(?)", (row.id,))
        if same:
            return
        other = (found.st_mode, found.st_uid, found.st_gid) != (row.mode, row.uid, row.gid)
        compared = row.is_file or row.is_dir
        if other or (row.is_file and ctime > 0):
            self._note(key, "attributes", row.id, found, proof=compared)
        elif compared:
            self._note(key, "unproven", row.id, found, proof=True)
        self._index.db.execute(agreeing_sql.DOUBTED, (found.st_mode, found.st_uid, found.st_gid, row.id))

    def _follow_renames(self) -> bool:
        """What was renamed here is known under its new name; the first look at it puts it back without any data."""
        db, index = self._index.db, self._index
        # Directories first, and all in them: a file may have other names there.
        moved = (
            db.execute(agreeing_sql.RENAMED, (True,)).fetchall()
            or db.execute(agreeing_sql.RENAMED, (False,)).fetchall()
        )
        names = {inode: index.names_of(inode) for _, _, _, inode, _ in moved}
        before = {
            inode: os.fsencode(path_of(index, keys[0])) if keys else None for inode, keys in names.items()
        }
        for _, _, _, inode, found in moved:
            if not found:
                db.executemany(sql.DROP_ENTRY, names[inode])
                db.execute("DELETE FROM finding WHERE inode = ? AND what = 'removed'", (inode,))
        for n, parent, name, inode, found in moved:
            row = index.inode_by_id(inode)
            assert row is not None
            db.execute(sql.SAVE_ENTRY, (parent, name, inode))
            how = "linked" if found else "renamed"
            db.execute(agreeing_sql.IS_RENAMED, (how, inode, before[inode], row.is_file, n))
            db.execute("UPDATE agreed SET found = 1 WHERE inode = ?", (inode,))
            db.execute(agreeing_sql.DOUBTED, (row.mode, row.uid, row.gid, inode))
            if row.is_dir:
                db.execute("INSERT OR IGNORE INTO pending VALUES(?)", (inode,))
        return bool(moved)

    def _note(
        self,
        key: Key,
        what: str,
        inode: Optional[int],
        found: Optional[os.stat_result],
        *,
        proof: bool = False,
    ) -> None:
        about: Tuple[Any, ...] = (None,) * 6
        if found is not None:
            about = (
                found.st_mode,
                found.st_ino,
                found.st_size,
                found.st_mtime_ns,
                found.st_uid,
                found.st_gid,
            )
        self._index.db.execute(agreeing_sql.ADD, (*key, what, inode, *about, proof))

    # ---- the end

    def keep_what_is_agreed(self) -> None:
        """Drop everything else from the index."""
        for statement in agreeing_sql.NOT_AGREED:
            self._index.db.execute(statement)

    def aside(self, after: int) -> List[Tuple[int, int, bytes, int]]:
        """Number, name and inode number of what nobody knows in that state, in portions."""
        return self._index.db.execute(
            """SELECT n, parent, name, ino FROM finding WHERE what IN ('new', 'changed', 'replaced') AND n > ?
            ORDER BY n LIMIT ?""",
            (after, AT_ONCE),
        ).fetchall()

    def moved(self) -> Iterator[Optional[str]]:
        """Paths of what was agreed on, and is not any more in the state in which it was compared; None after each portion."""
        parent, name = 0, b""
        fd: Optional[int] = None
        opened = 0
        try:
            while True:
                rows = self._index.db.execute(agreeing_sql.SEEN_FILES, (parent, name, AT_ONCE)).fetchall()
                if not rows:
                    return
                for parent, name, seen in rows:
                    if parent != opened:
                        if fd is not None:
                            os.close(fd)
                        fd, opened = self._open(parent), parent
                    if seen is not None and (fd is None or _ctime(fd, name) != seen):
                        yield path_of(self._index, (parent, name))
                yield None
        finally:
            if fd is not None:
                os.close(fd)


def _ctime(dir_fd: int, name: bytes) -> int:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ctime_ns
    except FileNotFoundError:
        return 0


def _is_alike(row: Row, found: os.stat_result, fd: int, name: bytes, target: Optional[bytes]) -> bool:
    """Whether a symlink, device, FIFO or socket is what is known, whatever its ctime says."""
    if stat.S_ISLNK(found.st_mode):
        return target is not None and os.readlink(name, dir_fd=fd) == target
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        return found.st_rdev == row.rdev
    return True


def _portions(names: Iterator[bytes]) -> Iterator[List[bytes]]:
    portion: List[bytes] = []
    for name in names:
        portion.append(name)
        if len(portion) >= AT_ONCE:
            yield portion
            portion = []
    if portion:
        yield portion
