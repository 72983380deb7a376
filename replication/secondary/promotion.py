"""Promotion: a secondary becomes a primary. The op `promotion`, which needs no hello.

It is fenced first: the owner's file says that it is promoted, the epoch goes up, and no session gets in any more.
Then processes that still write are ended, and what is half done is finished or rolled back, so that the tree
is complete in itself: what the journal names is looked up, what waits in limbo goes back to its last
name, shadows become files of their own, staging is emptied. Each step may be done again after a kill.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from replication.secondary import layout, owner, snapshots, sql
from replication.secondary.agent import Agent
from replication.secondary.boot import boot_id
from replication.secondary.completion import SHOWN, complete, path_of
from replication.secondary.goback import go_back, is_moving
from replication.secondary.index import Index
from replication.secondary.metadata import Powers
from replication.secondary.protocol import AgentError
from replication.secondary.steps import Work
from replication.secondary.syscalls import free_bytes, list_directory, syncfs
from replication.secondary.untouched import NotClosed, Untouched

HOLDER = "promotion"  # whose epoch it is from then on
_ROUNDS = 100
_PAUSE_S = 0.05
_DEEPEST = 10_000


def promotion(root: bytes, request: Dict[str, Any], *, gated: bool) -> Work:
    """``do``: "look" says what would be lost and changes nothing; "promote" does it, or ends what was begun.

    ``to``: a snapshot, of which the root becomes what it holds. ``session``: whose it has to be, if that is known. ``term``: of the promotion, above that of the root; ``by``: who
    asks, for people. ``gated``: by a key of the session's own, which may not promote again what was promoted. Raises AgentError,
    OSError, sqlite3.Error.
    """
    root_fd = owner.open_root(root, False)
    agent: Optional[Agent] = None
    try:
        found = owned_by(root_fd, root, request)
        if request.get("do") != "promote":
            return _facts(root_fd, found)
        term = int(request["term"])
        promoted = found.get("promoted")
        begun = (
            promoted is not None
            and promoted["term"] == term
            and request.get("to") in (None, promoted.get("to"))
        )
        if gated and promoted is not None and not begun:
            raise AgentError(
                "permission",
                "it was promoted: the session's own key may not do so again; come with access of your own",
            )
        if promoted is None or promoted["term"] != term:
            if term <= int(found.get("term", 0)):
                raise AgentError(
                    "stale-term", "this directory is in term {} already".format(found.get("term", 0))
                )
            promoted = {
                "term": term, "at_ns": time.time_ns(), "by": str(request.get("by", ""))[:200], "done": False,
                "since_ns": _now_here(root_fd), "boot": boot_id(),
                "uptime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            }  # fmt: skip
        promoted = _with_snapshot(root_fd, promoted, request.get("to"))
        agent = _fence(root_fd, found, promoted)
        root_fd = -1  # it is the agent's
        if not promoted["done"]:
            left = end_others(agent)
            if promoted.get("to") is not None:
                again_fd = os.dup(agent.tree.root_fd)
                yield from go_back(agent, promoted["to"], term)
                agent.close()
                agent = _fence(again_fd, owner.read_owner(again_fd) or found, promoted)
            report = {**(yield from complete(agent)), "others": left}
            syncfs(agent.tree.root_fd)
            promoted = {**promoted, "done": True, "mark": agent.index.meta.get("mark"), "report": report}
            promoted["done_ns"] = _now_here(agent.tree.root_fd)
            owner.write_owner(
                agent.tree.hidden_fd, {**(owner.read_owner(agent.tree.root_fd) or {}), "promoted": promoted}
            )
            syncfs(agent.tree.root_fd)
        return {
            **_facts(agent.tree.root_fd, owner.read_owner(agent.tree.root_fd) or {}),
            "report": promoted["report"],
        }
    finally:
        if agent is not None:
            agent.close()
        elif root_fd >= 0:
            os.close(root_fd)


def _with_snapshot(root_fd: int, promoted: Dict[str, Any], name: Any) -> Dict[str, Any]:
    """A promotion that has not ended, to this snapshot, if one is said; also where it began otherwise. Raises AgentError."""
    if name is None or promoted["done"] or promoted.get("to") == name:
        return promoted
    if is_moving(root_fd):
        raise AgentError(
            "busy", "it is on its way to snapshot {} already: end that first".format(promoted["to"])
        )
    snapshots.check_name(root_fd, str(name))
    return {**promoted, "to": str(name)}


def owned_by(root_fd: int, root: bytes, request: Dict[str, Any]) -> Dict[str, Any]:
    """What the owner's file says; it has to be that of ``session``, where that is known. Raises AgentError."""
    found = owner.read_owner(root_fd)
    if found is None:
        raise AgentError("not-ours", "no session has ever replicated to this directory", os.fsdecode(root))
    if request.get("session") not in (None, found["session"]):
        raise AgentError("owned", "this belongs to session {}".format(found["session"]))
    return found


def past(root: bytes, request: Dict[str, Any], *, gated: bool) -> Work:
    """The operation `past` (snapshots.py). Raises AgentError, OSError."""
    root_fd = owner.open_root(root, False)
    try:
        found = owned_by(root_fd, root, request)
        if gated and found.get("promoted") and request.get("do") == "remove":
            raise AgentError(
                "permission", "it was promoted: its snapshots are no longer for the session's own key"
            )
    except BaseException:
        os.close(root_fd)
        raise
    return snapshots.past(root_fd, request, gated=gated)


def _fence(root_fd: int, found: Dict[str, Any], promoted: Dict[str, Any]) -> Agent:
    """From here on no session is served, and no transaction of an earlier epoch is committed."""
    epoch = int(found.get("epoch", 0))
    request = {
        "session": found["session"], "volume": found["volume"], "epoch": epoch + 1, "holder": HOLDER, "takes": epoch,
        "promoted": promoted,
    }  # fmt: skip
    if found.get("holder") == HOLDER:
        request["epoch"] = epoch
    return owner.open_agent(root_fd, found, request, Powers(), False)


def _now_here(root_fd: int) -> int:
    """The time by the clock that stamps what is changed here: whatever has an earlier ctime was not changed since."""
    name = layout.HIDDEN + b"/now.%d" % os.getpid()
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root_fd)
    try:
        os.utime(fd)
        return os.fstat(fd).st_ctime_ns
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=root_fd)


# ---- what is known


def _facts(root_fd: int, found: Dict[str, Any]) -> Dict[str, Any]:
    answer: Dict[str, Any] = {
        "owner": found, "term": int(found.get("term", 0)), "promoted": found.get("promoted"), "t": time.time_ns(),
        "free_bytes": free_bytes(root_fd), "index": "lost", "snapshots": snapshots.known(root_fd),
    }  # fmt: skip
    hidden = b"/proc/self/fd/%d/%s/" % (root_fd, layout.HIDDEN)
    try:
        db = _reading(hidden + layout.INDEX)
    except (sqlite3.Error, OSError):
        return answer
    try:
        index = Index.looking(db)
        inodes, files, directories, wanted, in_limbo, size = db.execute(sql.STATISTICS).fetchone()
        answer.update(
            index=index.meta.get("state", "ok"), epoch=index.meta.get("epoch", 0), holder=index.meta.get("holder"),
            mark=index.meta.get("mark"), told=index.meta.get("told"), inodes=inodes, files=files, dirs=directories,
            bytes=size, wanted=wanted, limbo=in_limbo, displaced=int(index.meta.get("displaced", 0)),
            held=sum(count for (count,) in _rows(db, "SELECT count(*) FROM held")),
            missing=db.execute("SELECT count(*) FROM inode WHERE ino = 0 AND limbo IS NULL").fetchone()[0],
            torn=[path_of(index, key) for key in _rows(db, sql.TORN, (SHOWN,))],
        )  # fmt: skip
    except sqlite3.Error:
        return answer
    finally:
        db.close()
    return answer


def _rows(db: sqlite3.Connection, query: str, values: Tuple[Any, ...] = ()) -> List[Any]:
    """Of a table that an index from before it was thought of does not have."""
    try:
        return db.execute(query, values).fetchall()
    except sqlite3.OperationalError:
        return []


def _reading(path: bytes) -> sqlite3.Connection:
    """The index, read as it stands if that can be; one whose last user was killed has to be opened."""
    try:
        return Untouched(path).db
    except NotClosed:
        db = sqlite3.connect(os.fsdecode(path), timeout=60, isolation_level=None)
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
        return db


# ---- ending what still writes


def end_others(agent: Agent) -> int:
    """Kill what is still at work below this root on behalf of the old primary: agents, rsync, tar.

    They could commit nothing any more; but what writes into a file in place asks nobody. Returns how many could not be
    killed: they are another user's, or out of sight.
    """
    root = os.readlink("/proc/self/fd/{}".format(agent.tree.root_fd))
    staging = agent.tree.staging_fd
    below = os.path.join(root, os.fsdecode(layout.HIDDEN), os.fsdecode(layout.STAGING))
    others: Set[int] = set()
    for _ in range(_ROUNDS):
        for name in list_directory(staging):  # none of it is to be begun again
            if name.startswith(b"unit."):
                shutil.rmtree(b"/proc/self/fd/%d/%s" % (staging, name), ignore_errors=True)
        found = [pid for pid in _processes_below(below) if pid not in others]
        if not found:
            break
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except OSError:
                others.add(pid)
        time.sleep(_PAUSE_S)
    return len(others)


def _processes_below(directory: str) -> Iterator[int]:
    """Other processes that have something open there, or stand there."""
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        links = ["/proc/{}/cwd".format(pid)]
        try:
            links += ["/proc/{}/fd/{}".format(pid, fd) for fd in os.listdir("/proc/{}/fd".format(pid))]
        except OSError:
            continue
        for link in links:
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target == directory or target.startswith(directory + "/"):
                yield int(pid)
                break
