"""Units of rsync and tar: a directory in staging where they find a basis and leave what is new.

``.seamark/staging/<unit>/new/<gfid>`` is what the engine writes; ``basis/<gfid>`` is a hard link of what is
here now, or of that and what an interrupted try had (basis.py). In place (``in_place``): new/<gfid> is a hard link
of the live file itself, which is written through; for files too large to be kept twice.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from typing import Any, Dict, List, Optional, Tuple

from replication.secondary import basis, layout, sql
from replication.secondary.agent import Agent
from replication.secondary.content_only import came, undress
from replication.secondary.gfids import gfid_at
from replication.secondary.index import Row, signed
from replication.secondary.leftovers import sweep_unwanted
from replication.secondary.metadata import Item, dress_existing
from replication.secondary.metadata_op import apply_items
from replication.secondary.observed import gfid_of
from replication.secondary.protocol import AgentError, code_of
from replication.secondary.receiver import place
from replication.secondary.staged import Staged
from replication.secondary.syscalls import free_bytes
from replication.secondary.transfers import abandon
from replication.secondary.tree import LostDirectory

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_")


def _unit_name(request: Dict[str, Any]) -> bytes:
    unit = str(request["unit"])
    if not unit or len(unit) > 100 or not set(unit) <= _CHARACTERS:
        raise AgentError("protocol", "not the name of a unit: {!r}".format(unit))
    return b"unit." + unit.encode()


def _remove(agent: Agent, name: bytes) -> None:
    """A unit's directory, whatever the engine left there. (It is below our own staging, and rmtree is safe.)"""
    shutil.rmtree(b"/proc/self/fd/%d/%s" % (agent.tree.staging_fd, name), ignore_errors=True)


def _lock(agent: Agent, what: bytes) -> None:
    """Nobody else writes there until this unit is committed, or this connection ends. Raises AgentError("busy")."""
    name = b"lock." + what
    while True:
        fd = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=agent.tree.staging_fd
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(name, dir_fd=agent.tree.staging_fd).st_ino == os.fstat(fd).st_ino:
                agent.unit_locks[name] = fd
                return
        except FileNotFoundError:
            pass  # the one who had it has just removed it
        except BlockingIOError:
            os.close(fd)
            _unlock(agent)
            raise AgentError("busy", "another connection is sending this") from None
        os.close(fd)


def _unlock(agent: Agent) -> None:
    for name, fd in agent.unit_locks.items():
        try:
            os.unlink(name, dir_fd=agent.tree.staging_fd)
        except FileNotFoundError:
            pass
        os.close(fd)
    agent.unit_locks.clear()


def stage(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Make the unit's directory. ``in_place``: true for all, false for none, null: where it must be."""
    name = _unit_name(request)
    agent.check_epoch()
    agent.tree.begin()
    _unlock(agent)  # of a unit that was never committed
    _lock(agent, name)
    staging = agent.tree.staging_fd
    basis.salvage(staging, name)
    _remove(agent, name)
    sweep_unwanted(agent)
    for part in (b"", b"/new", b"/basis"):
        os.mkdir(name + part, 0o700, dir_fd=staging)
    new_fd = os.open(name + b"/new", _DIR, dir_fd=staging)
    basis_fd = os.open(name + b"/basis", _DIR, dir_fd=staging)
    in_place: List[str] = []
    written: List[Tuple[int, int]] = []
    unknown: List[str] = []
    try:
        rows = agent.index.inodes(gfid_of(g) for g in request["gfids"])
        names = agent.index.names(row.id for row in rows.values())
        room = free_bytes(staging)
        shadows = agent.namespace.shadows
        for gfid in request["gfids"]:
            abandon(agent, gfid_of(gfid))
            row = rows.get(bytes.fromhex(gfid))
            if row is None or not row.is_file:
                unknown.append(gfid)
            elif row.ino and _in_place(request.get("in_place"), row, room) and not shadows.holds(row.ino):
                # (A shadow shows an old version, whole: what its inode gets is written aside.)
                _lock(agent, b"file." + gfid.encode())
                if basis.link_present(agent, row, names.get(row.id, []), new_fd):
                    in_place.append(gfid)
                    written.append((row.id, signed(row.ino)))
            else:
                basis.provide(agent, row, names.get(row.id, []), basis_fd)
    finally:
        os.close(new_fd)
        os.close(basis_fd)
    if written:
        with agent.transaction():  # durable no later than what is written
            agent.index.db.execute(sql.FORGET_WHOLE)
            agent.index.db.executemany(sql.SAVE_IN_PLACE, written)
    base = b"/".join((layout.HIDDEN, layout.STAGING, name)).decode()
    return {"path": base + "/new", "basis": base + "/basis", "in_place": in_place, "unknown": unknown}


def _in_place(wanted: Optional[bool], row: Row, room: int) -> bool:
    if wanted is not None:
        return wanted
    return row.size > room  # several names are no reason: they all get the new inode together


def commit(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Place what the engine wrote, and remove the unit's directory. Raises LostDirectory: it may be asked again."""
    name = _unit_name(request)
    errors: List[List[Any]] = []
    try:
        new_fd = os.open(name + b"/new", _DIR, dir_fd=agent.tree.staging_fd)
    except FileNotFoundError:
        raise AgentError("not-found", "no such unit") from None
    staged: List[Staged] = []
    try:
        done = _commit(agent, [Item(*fields) for fields in request["items"]], new_fd, staged, errors)
    except LostDirectory:
        for file in staged:
            file.go_back(new_fd, file.item.gfid.hex().encode())
            if file.fd >= 0:
                os.close(file.fd)
        os.close(new_fd)
        raise
    except BaseException:
        _end(agent, name, new_fd, staged)
        raise
    _end(agent, name, new_fd, staged)
    return {"errors": errors, "done": done}


def _commit(
    agent: Agent, items: List[Item], new_fd: int, staged: List[Staged], errors: List[List[Any]]
) -> int:
    live: List[Item] = []
    rows = agent.index.inodes(item.gfid for item in items)
    undress(agent, items)
    for item in items:
        file = _written(agent, item, new_fd, errors)
        if file is None:
            continue
        os.close(file.fd)  # the name is enough; thousands of files may come in one unit
        file.fd = -1
        row = rows.get(item.gfid)
        if row is not None and row.ino == file.ino:
            live.append(item)
        else:
            staged.append(file)
    done = place(agent, staged, errors) + written_through(agent, live, errors)
    for item in [*live, *(file.item for file in staged)]:
        basis.forget(agent, item.gfid)
    return done


def _end(agent: Agent, name: bytes, new_fd: int, staged: List[Staged]) -> None:
    for file in staged:
        file.close()
    os.close(new_fd)
    _remove(agent, name)
    _unlock(agent)


def _written(agent: Agent, item: Item, new_fd: int, errors: List[List[Any]]) -> Optional[Staged]:
    name = item.gfid.hex().encode()
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=new_fd)
    except OSError as error:
        errors.append([item.gfid.hex(), "io", "the engine did not write it: {}".format(error.strerror)])
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != item.size:
            raise OSError(5, "{} bytes came, not {}".format(found.st_size, item.size))
        dress_existing(b"/proc/self/fd/%d" % fd, found, item, agent.powers, item.xattrs, times=True)
        # As a try before this one may have left it.
        is_right = agent.gfids is not None and gfid_at(new_fd, name) == item.gfid
    except OSError as error:
        os.close(fd)
        errors.append([item.gfid.hex(), code_of(error), "cannot finish it: {}".format(error.strerror)])
        return None
    return Staged(item, fd, found.st_ino, new_fd, name, is_right)


def written_through(agent: Agent, items: List[Item], errors: List[List[Any]]) -> int:
    """Live files that were written in place: they are complete now."""
    if not items:
        return 0
    with agent.transaction():
        rows = agent.index.inodes(item.gfid for item in items)
        items = [item for item in items if item.gfid in rows]
        for item in items:
            row = rows[item.gfid]
            if row.takes(item.ticket):
                row.took(item.ticket)
            else:
                row.dirty = row.dirty or 1  # written all the same, and by now nobody knows what it is
            row.size = item.size
            row.gen = agent.index.meta["gen"]
            row.changed = True
        agent.index.save(rows.values(), [], [])
        found = came(agent, items) if agent.content_only else apply_items(agent, items, content_too=True)
    errors += found
    return len(items) - len(found)
