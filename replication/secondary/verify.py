"""What this side really has, for a comparison with the primary: `inspect`, `pieces`, `hashing`; and `mend`.

The tree is read as it stands, by paths, without following links out of the root; the index is not asked. Only
`mend` changes anything: it makes the index forget what is not so, and moves aside what is foreign.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from bisect import bisect_left
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Tuple

from replication.secondary import layout, sql
from replication.secondary.agent import Agent
from replication.secondary.index import is_object_of
from replication.secondary.inspection import (
    Manner,
    Row,
    digest_range,
    digest_rows,
    open_to_read,
    plain,
    row_of,
)  # fmt: skip
from replication.secondary.protocol import AgentError
from replication.secondary.syscalls import list_directory

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_BYTES = 256 << 20  # digested for one request: it has to be answered before anybody gets impatient
_KEPT_ROWS = 20_000
_TRIAL, _TRIALS = 64 << 10, 7
HASHES = ("sha256", "blake2b")


class Recent:
    """Rows of the last parts: those that turn out to differ are asked for next, and not read again."""

    def __init__(self) -> None:
        self._parts: "OrderedDict[Tuple[str, str], List[Row]]" = OrderedDict()
        self._rows = 0
        self.listed: Tuple[Any, List[bytes]] = (None, [])  # a directory that comes in many parts

    def keep(self, key: Tuple[str, str], rows: List[Row]) -> None:
        self.take(key)
        self._parts[key] = rows
        self._rows += len(rows)
        while self._rows > _KEPT_ROWS and len(self._parts) > 1:
            self._rows -= len(self._parts.popitem(last=False)[1])

    def take(self, key: Tuple[str, str]) -> Optional[List[Row]]:
        rows = self._parts.pop(key, None)
        self._rows -= len(rows or ())
        return rows


def inspect(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """See docs/formats.md: of each part of a directory a digest, or its rows."""
    manner = Manner(**request["manner"])
    if agent.recent is None:
        agent.recent = Recent()
    recent = agent.recent
    budget = _MOST_BYTES
    answers: List[Any] = []
    for part in request["parts"]:
        key = (part["path"], part.get("first", ""))
        kept = recent.take(key)  # also what is out of date by now
        rows = kept if request.get("rows") and "names" not in part else None
        upto = None
        if rows is None:
            try:
                fd = _open_directory(agent, os.fsencode(part["path"]))
                if fd is None:
                    answers.append(None)
                    continue
                try:
                    rows, upto, budget = _rows_of(agent, fd, part, manner, budget)
                finally:
                    os.close(fd)
            except OSError as error:
                answers.append({"errno": error.errno})
                continue
        answer: Dict[str, Any] = {"upto": os.fsdecode(upto) if upto is not None else None}
        if request.get("rows"):
            answer["rows"] = [plain(row) for row in rows]
        else:
            if "names" not in part:
                recent.keep(key, rows)
            answer["digest"] = digest_rows(rows)
            answer["links"] = [[os.fsdecode(r.name), r.ino] for r in rows if r.nlink > 1 and r.kind != "d"]
        answers.append(answer)
    return {"parts": answers}


def _rows_of(
    agent: Agent, fd: int, part: Dict[str, Any], manner: Manner, budget: int
) -> Tuple[List[Row], Optional[bytes], int]:
    """Rows of a part of a directory; the name at which it stopped, if it read enough; what may still be read."""
    rows: List[Row] = []
    for name in _names(agent, fd, part, manner):
        if rows and budget <= 0:
            return rows, name, budget
        row = row_of(fd, name, manner)
        if row is not None:
            rows.append(row)
            budget -= row.size if row.content else 0
    return rows, None, budget


def _names(agent: Agent, fd: int, part: Dict[str, Any], manner: Manner) -> List[bytes]:
    """The names that are meant: those that are said, or all from ``first`` to before ``end`` that nothing leaves out."""
    path = os.fsencode(part["path"])
    prefix = path + b"/" if path else b""
    if "names" in part:
        found = [os.fsencode(str(name)) for name in part["names"]]
        if any(b"/" in name or name in (b"", b"..") for name in found):
            raise AgentError("protocol", "not a name")
        return [name for name in found if path or name != layout.HIDDEN]
    listed = _list(agent, fd)
    first, end = os.fsencode(part.get("first", "")), part.get("end")
    upto = len(listed) if end is None else bisect_left(listed, os.fsencode(end))
    also = {os.fsencode(name) for name in part.get("also", ())}
    but = {os.fsencode(name) for name in part.get("but", ())}
    found = []
    for name in listed[bisect_left(listed, first) : upto]:
        if name in but or (not path and name == layout.HIDDEN):
            continue
        if name not in also and not manner.takes(prefix + name):
            continue
        if agent.filters and agent.filters.excludes(prefix + name, _is_dir(fd, name)):
            continue
        found.append(name)
    return found


def _list(agent: Agent, fd: int) -> List[bytes]:
    """Names of a directory in order. The last is kept while it stays as it is: a large one comes in many parts."""
    s = os.fstat(fd)
    state = (s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns)
    recent: Recent = agent.recent
    if recent.listed[0] != state:
        recent.listed = (state, sorted(list_directory(fd)))
    return recent.listed[1]


def _is_dir(fd: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _open_directory(agent: Agent, path: bytes) -> Optional[int]:
    """A directory below the root, by a way without links; None: there is no such directory. Raises OSError."""
    fd = os.open(b".", _DIR, dir_fd=agent.tree.root_fd)
    for depth, name in enumerate(path.split(b"/") if path else ()):
        if name in (b"", b".", b"..") or (not depth and name == layout.HIDDEN):
            os.close(fd)
            raise AgentError("protocol", "not a path below the root")
        try:
            inner = os.open(name, _DIR, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == 40:  # ELOOP: a link
                return None
            raise
        finally:
            os.close(fd)
        fd = inner
    return fd


def pieces(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Digest of ``length`` bytes of a file from ``offset`` on; null where there is no such file."""
    path = os.fsencode(request["path"])
    directory, name = os.path.split(path)
    fd = _open_directory(agent, directory)
    if fd is None:
        return {"digest": None}
    try:
        file = open_to_read(fd, name)
    except FileNotFoundError:
        return {"digest": None}
    finally:
        os.close(fd)
    try:
        length = min(int(request["length"]), _MOST_BYTES)
        return {"digest": digest_range(file, int(request["offset"]), length, str(request["hash"]))}
    finally:
        os.close(file)


def hashing(_agent: Optional[Agent], _request: Dict[str, Any]) -> Dict[str, Any]:
    """How long each hash takes here for the same amount, in ns: instructions of the processor decide."""
    data = bytes(_TRIAL)
    found = {}
    for name in HASHES:
        took = []
        for _ in range(_TRIALS):  # the least of some: others may have the processor in between
            began = time.perf_counter_ns()
            hashlib.new(name, data).digest()
            took.append(time.perf_counter_ns() - began)
        found[name] = min(took)
    return {"ns": found}


def mend(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Make ready for the primary's next look at ``items``, [path, anew]: nothing of them is taken for granted.

    What stands there and is not ours is displaced; so is, with ``anew``, our own that cannot be changed in place.
    """
    displaced = agent.namespace.displacer.count
    with agent.transaction():
        for path, anew in request["items"]:
            _mend(agent, os.fsencode(str(path)), bool(anew))
    return {"displaced": agent.namespace.displacer.count - displaced}


def _mend(agent: Agent, path: bytes, anew: bool) -> None:
    index, namespace = agent.index, agent.namespace
    directory, name = os.path.split(path)
    parent = index.at(directory)
    if parent is None or name in (b"", b".", b"..") or (not directory and name == layout.HIDDEN):
        return
    index.reset_digests([parent])
    key = (parent, name)
    inode = index.entry(parent, name)
    row = index.inode_by_id(inode) if inode is not None else None
    found = namespace.standing(key)
    if row is None:
        if found is not None and not agent.filters.excludes(path, stat.S_ISDIR(found.st_mode)):
            namespace.displacer.displace(key)
        return
    if not row.ino:
        index.doubt(row.id)  # under way, or lost: the next look wants it
        return
    if found is not None and not anew and is_object_of(row, found) and found.st_dev == agent.tree.device:
        index.doubt(row.id)
        return
    if found is not None:
        namespace.displacer.displace(key)
    namespace.shadows.forget([key])
    index.db.execute(sql.DROP_ENTRY, key)
    index.drop([row])
    agent.tree.forget(row.id)
    agent.tree.rows.pop(row.id, None)
