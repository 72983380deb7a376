"""Seeding: an old primary becomes a secondary, with an index of what both sides agree on. The ops `seed_…`.

Whoever was promoted knows of each object which state of ours it had (inode number, ctime). That knowledge
comes here as rows of an index, with the other side's identities. It is compared with what stands here: what is
still in that state is agreed on, is ours to change, and is not sent again. Everything else was written here
and never replicated: it is displaced, and told of. Until `seed_commit` nothing is changed but a temporary file.

findings: ``new`` (nobody knows it there), ``changed`` (content), ``replaced`` (another object has the name),
``removed``, ``renamed``, ``linked`` (one more name), ``attributes`` (its content has the size and the time that it had).
"""

from __future__ import annotations

import os
import stat
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from replication.secondary import faults, layout, owner, sql
from replication.secondary.filters import Filters
from replication.secondary.index import Index, Key, Row, is_object_of, root_row
from replication.secondary.metadata import Powers
from replication.secondary.promotion import path_of
from replication.secondary.protocol import AgentError
from replication.secondary.syscalls import syncfs

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = 2_000
_TURN_S = 2.0  # a request takes no longer, so that its answer says that we live
_DEEPEST = 100_000
_LOST_FOUND = b"lost+found"  # the file system's
_MINE = (
    "CREATE TEMP TABLE agreed(inode INTEGER PRIMARY KEY, ctime INTEGER NOT NULL, found INTEGER NOT NULL DEFAULT 0)",
    "CREATE TEMP TABLE pending(inode INTEGER PRIMARY KEY)",
    """CREATE TEMP TABLE finding(n INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, what TEXT NOT NULL,
        inode INTEGER, mode INTEGER, ino INTEGER, size INTEGER, mtime INTEGER, before TEXT)""",
    "CREATE INDEX temp.finding_inode ON finding(inode)",
)
_ADD = "INSERT INTO finding(parent, name, what, inode, mode, ino, size, mtime) VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
# Names at which objects stand that are known by others: they were renamed, or linked. A directory has one name.
_RENAMED = """SELECT finding.n, finding.parent, finding.name, inode.id, agreed.found FROM finding
    JOIN inode ON inode.ino = finding.ino AND inode.mode & 61440 = finding.mode & 61440
    JOIN agreed ON agreed.inode = inode.id
    WHERE finding.what IN ('new', 'replaced') AND (inode.mode & 61440 = 16384) = ?1 AND NOT (?1 AND agreed.found)
    AND (inode.mode & 61440 <> 32768 OR (inode.size = finding.size AND inode.mtime = finding.mtime))
    GROUP BY inode.id"""
_IS_RENAMED = "UPDATE finding SET what = ?, inode = ?, before = ? WHERE n = ?"
# Names and objects of which nothing is agreed on.
_NOT_AGREED = (
    """DELETE FROM entry WHERE EXISTS (SELECT 1 FROM finding WHERE finding.parent = entry.parent
        AND finding.name = entry.name AND finding.inode = entry.inode AND finding.what IN ('changed', 'replaced', 'removed'))""",
    "DELETE FROM entry WHERE inode IN (SELECT inode FROM agreed WHERE NOT found)",
    "DELETE FROM entry WHERE parent IN (SELECT inode FROM agreed WHERE NOT found)",
    "DELETE FROM inode WHERE id IN (SELECT inode FROM agreed WHERE NOT found)",
)


class Seeding:
    """One connection's, from `seed_begin` on."""

    def __init__(self, root: bytes, request: Dict[str, Any]) -> None:
        """``session``, ``volume``: whose secondary it will be. ``term``: of the promotion there.

        Raises AgentError when this is not to become one.
        """
        self._request = request
        self._filters = Filters(request.get("filters") or ())
        self._root_fd = owner.open_root(root, False)
        self._owner = owner.read_owner(self._root_fd)
        self._check()
        self._index = Index(b"")
        for statement in _MINE:
            self._index.db.execute(statement)
        self._index.db.execute("BEGIN")
        self._index.create(root_row(os.fstat(self._root_fd)))
        self._index.db.execute(sql.INDEX_INO)

    def _check(self) -> None:
        found, term = self._owner, int(self._request["term"])
        if found is None:
            return
        if term <= int(found.get("term", 0)) and (
            found.get("promoted") or found["session"] != self._request["session"]
        ):
            raise AgentError("stale-term", "it is in term {} already".format(found.get("term", 0)))
        if not found.get("promoted") and found["session"] != self._request["session"]:
            raise AgentError("owned", "this belongs to session {}".format(found["session"]))

    def close(self) -> None:
        self._index.close()
        os.close(self._root_fd)

    # ---- taking in

    def rows(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """``rows``: [id, gfid, mode, uid, gid, size, mtime, atime, rdev, ino here, ctime here, ino there, ctime there]; ctime
        0: not known. ``names``: [parent, name, inode].
        """
        db = self._index.db
        rows, agreed = [], []
        for id_, gfid, mode, uid, gid, size, mtime, atime, rdev, ino, ctime, pino, pctime in request["rows"]:
            row = Row(
                id_, bytes.fromhex(gfid), mode, uid, gid, size, mtime, atime, rdev, ino, 0, pino, pctime,
                int(stat.S_ISDIR(mode)), None, None, 1, 0,
            )  # fmt: skip
            rows.append(row.insert_values())
            agreed.append((id_, ctime))
        db.executemany(sql.SAVE_INODE, rows)
        db.executemany("INSERT INTO agreed(inode, ctime) VALUES(?, ?)", agreed)
        db.executemany(sql.SAVE_ENTRY, [(p, os.fsencode(n), i) for p, n, i in request["names"]])
        self._index.meta["next_id"] = max([self._index.meta["next_id"], *(r[0] + 1 for r in rows)])
        return {}

    # ---- comparing

    def compare(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Go on comparing; ``anew`` begins again. ``done``: all was looked at, and the findings can be read."""
        db = self._index.db
        if request.get("anew"):
            db.execute("DELETE FROM finding")
            db.execute("DELETE FROM pending")
            db.execute("UPDATE agreed SET found = 0")
            db.execute("INSERT INTO pending VALUES(?)", (layout.ROOT_ID,))
        until = time.monotonic() + _TURN_S
        while time.monotonic() < until:
            found = db.execute("SELECT inode FROM pending LIMIT 1").fetchone()
            if found is None and not self._follow_renames():
                agreed, known = db.execute("SELECT coalesce(sum(found), 0), count(*) FROM agreed").fetchone()
                return {"done": True, "agreed": agreed, "known": known}
            if found is not None:
                self._directory(found[0])
                db.execute("DELETE FROM pending WHERE inode = ?", found)
        return {"done": False}

    def findings(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """[path, what, inode there or null, mode, size, mtime (ns), path before] from ``after`` on, and where to go on."""
        query = "SELECT n, parent, name, what, inode, mode, size, mtime, before FROM finding WHERE n > ? ORDER BY n LIMIT ?"
        rows = self._index.db.execute(query, (int(request.get("after") or 0), _AT_ONCE)).fetchall()
        found = [
            [
                path_of(self._index, (parent, name)),
                what.decode(),
                inode,
                mode,
                size,
                mtime,
                before and before.decode("utf-8", "surrogateescape"),
            ]
            for _, parent, name, what, inode, mode, size, mtime, before in rows
        ]
        return {"findings": found, "next": rows[-1][0] if rows else None}

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
            unseen = [name for (name,) in db.execute(sql.UNSEEN, (directory, _AT_ONCE))]
            if not unseen:
                break
            for name, inode in self._index.entries(directory, unseen).items():
                self._note((directory, name), "removed", inode, None)
            db.executemany(sql.ADD_SEEN, [(directory, name) for name in unseen])
        db.execute(sql.FORGET_SEEN, (directory,))

    def _names(self, directory: int, fd: int, names: List[bytes]) -> None:
        known = self._index.entries(directory, names)
        rows = self._index.inodes_by_id(known.values())
        agreed = dict(self._index.chunked(_AGREED, list(known.values())))
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
            if self._filters and self._filters.excludes(
                os.fsencode(path_of(self._index, key)), stat.S_ISDIR(found.st_mode)
            ):
                continue
            row = rows.get(known.get(name, 0))
            if row is None:
                self._note(key, "new", None, found)
            elif not is_object_of(row, found):
                self._note(key, "replaced", row.id, found)
            else:
                self._object(key, row, found, agreed.get(row.id, 0))

    def _object(self, key: Key, row: Row, found: os.stat_result, ctime: int) -> None:
        """It is the object that was there; is it in the state that is known?"""
        same = ctime > 0 and found.st_ctime_ns == ctime
        if not same and row.is_file and (found.st_size, found.st_mtime_ns) != (row.size, row.mtime):
            self._note(key, "changed", row.id, found)
            return
        self._index.db.execute("UPDATE agreed SET found = 1 WHERE inode = ?", (row.id,))
        if row.is_dir:
            self._index.db.execute("INSERT OR IGNORE INTO pending VALUES(?)", (row.id,))
        if same:
            return
        attributes = (found.st_mode, found.st_uid, found.st_gid) != (row.mode, row.uid, row.gid)
        if attributes or (ctime > 0 and not row.is_dir):
            self._note(key, "attributes", row.id, found)
        self._index.db.execute(_DOUBTED, (found.st_mode, found.st_uid, found.st_gid, row.id))

    def _follow_renames(self) -> bool:
        """What was renamed here is known under its new name; the first look at it puts it back without any data."""
        db, index = self._index.db, self._index
        # Directories first, and all in them: a file may have other names there.
        moved = db.execute(_RENAMED, (True,)).fetchall() or db.execute(_RENAMED, (False,)).fetchall()
        names = {inode: index.names_of(inode) for _, _, _, inode, _ in moved}
        before = {inode: path_of(index, keys[0]) if keys else None for inode, keys in names.items()}
        for _, _, _, inode, found in moved:
            if not found:
                db.executemany(sql.DROP_ENTRY, names[inode])
                db.execute("DELETE FROM finding WHERE inode = ? AND what = 'removed'", (inode,))
        for n, parent, name, inode, found in moved:
            row = index.inode_by_id(inode)
            assert row is not None
            db.execute(sql.SAVE_ENTRY, (parent, name, inode))
            db.execute(_IS_RENAMED, ("linked" if found else "renamed", inode, before[inode], n))
            db.execute("UPDATE agreed SET found = 1 WHERE inode = ?", (inode,))
            db.execute(_DOUBTED, (row.mode, row.uid, row.gid, inode))
            if row.is_dir:
                db.execute("INSERT OR IGNORE INTO pending VALUES(?)", (inode,))
        return bool(moved)

    def _note(self, key: Key, what: str, inode: Optional[int], found: Optional[os.stat_result]) -> None:
        about: Tuple[Any, ...] = (None,) * 4
        if found is not None:
            about = (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns)
        self._index.db.execute(_ADD, (*key, what, inode, *about))

    # ---- for good

    def commit(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Displace what is not agreed on, and be a secondary from here on. Nothing that stands here is deleted."""
        if self._index.db.execute("SELECT 1 FROM pending LIMIT 1").fetchone() is not None:
            raise AgentError("protocol", "seed_compare comes first, until it is done")
        self._check()
        aside = self._index.db.execute(
            "SELECT parent, name, what, ino FROM finding WHERE what IN ('new', 'changed', 'replaced') ORDER BY n"
        ).fetchall()
        self._drop_what_is_not_agreed()
        self._write_index()
        faults.point("seeded")
        session = {name: self._request[name] for name in ("session", "volume")}
        served = int((self._owner or {}).get("epoch", 0))
        agent = owner.open_agent(self._root_fd, {**session}, {**session, "epoch": served}, Powers(), True)
        agent.read_only = False
        displaced = 0
        try:
            for start in range(0, len(aside), _AT_ONCE):
                with agent.transaction(check_epoch=False):
                    for parent, name, _, ino in aside[start : start + _AT_ONCE]:
                        faults.point("aside")
                        standing = agent.namespace.standing((parent, name))
                        if standing is not None and standing.st_ino == ino:
                            agent.namespace.displacer.displace((parent, name))
                            displaced += 1
            with agent.transaction(check_epoch=False):
                agent.index.set_meta("epoch", served + 1)
            syncfs(agent.tree.root_fd)
            faults.point("unowned")
            owner.write_owner(
                agent.tree.hidden_fd,
                {
                    **session,
                    "epoch": served + 1,
                    "holder": None,
                    "of": request.get("of"),
                    "term": self._request["term"],
                },
            )
            syncfs(agent.tree.root_fd)
        finally:
            agent.close()
        return {"displaced": displaced}

    def _drop_what_is_not_agreed(self) -> None:
        db = self._index.db
        for statement in _NOT_AGREED:
            db.execute(statement)
        self._index.set_meta("next_id", self._index.meta["next_id"])
        db.execute("COMMIT")

    def _write_index(self) -> None:
        """In the place of one that there may be, of an earlier life."""
        hidden_fd = owner.our_directories(self._root_fd)
        owner.set_aside(hidden_fd)
        aside = b"index.seeded"
        try:
            os.unlink(aside, dir_fd=hidden_fd)
        except FileNotFoundError:
            pass
        self._index.db.execute(sql.DROP_INDEX_INO)
        self._index.db.execute("VACUUM INTO ?", ("/proc/self/fd/{}/{}".format(hidden_fd, aside.decode()),))
        os.rename(aside, layout.INDEX, src_dir_fd=hidden_fd, dst_dir_fd=hidden_fd)
        os.close(hidden_fd)


_AGREED = "SELECT inode, ctime FROM agreed WHERE inode IN ({})".format(",".join("?" * sql.CHUNK))
# Owner and mode as they are here: a look that finds others sets them.
_DOUBTED = """UPDATE inode SET pctime = 0, mode = ?, uid = ?, gid = ?,
    dirty = CASE WHEN mode & 61440 = 32768 THEN 1 ELSE 0 END WHERE id = ?"""


def _portions(names: Iterator[bytes]) -> Iterator[List[bytes]]:
    portion: List[bytes] = []
    for name in names:
        portion.append(name)
        if len(portion) >= _AT_ONCE:
            yield portion
            portion = []
    if portion:
        yield portion


STEPS: Dict[str, Callable[[Seeding, Dict[str, Any]], Dict[str, Any]]] = {
    "seed_rows": Seeding.rows, "seed_compare": Seeding.compare, "seed_findings": Seeding.findings,
    "seed_commit": Seeding.commit,
}  # fmt: skip
