"""Comparing by digest what is here with what the primary has."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Tuple

from replication.secondary.agent import Agent
from replication.secondary.content_only import came, open_here, undress
from replication.secondary.index import Row
from replication.secondary.metadata import Item
from replication.secondary.metadata_op import apply_items
from replication.secondary.observed import gfid_of
from replication.secondary.protocol import code_of
from replication.secondary.transfers import content_digest

State = Tuple[int, int]  # of a file that was read: inode number, ctime (ns)


def compare(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Which of these differ in content; the others get their metadata and are clean."""
    differ: List[str] = []
    equal: Dict[bytes, Tuple[Item, State]] = {}
    errors: List[List[Any]] = []
    agent.tree.begin()
    for gfid, size, digest, fields in request["items"]:
        try:
            here = _digest_here(agent, gfid_of(gfid), int(size))
        except OSError as error:
            errors.append([gfid, code_of(error), "cannot read it: {}".format(error.strerror)])
            continue
        if here is None or here[1] != digest:
            differ.append(gfid)
        else:
            item = Item(*fields)
            equal[item.gfid] = (item, here[0])
    if equal:
        undress(agent, [item for item, _ in equal.values()])
        errors += _make_clean(agent, equal, differ)
    return {"differ": differ, "errors": errors}


def _digest_here(agent: Agent, gfid: bytes, size: int) -> Optional[Tuple[State, str]]:
    """What our copy was before it was read, and its digest; None when there is none, or one of another size."""
    row = agent.index.inode(gfid)
    fd = open_here(agent, row) if row is not None else None
    if fd is None:
        return None
    try:
        before = _state(agent, fd)
        return (before, content_digest(fd)) if os.fstat(fd).st_size == size else None
    finally:
        os.close(fd)


def _state(agent: Agent, fd: int) -> State:
    """The inode number, and the ctime where an object goes on as what it is with new content: there it tells of that."""
    found = os.fstat(fd)
    return found.st_ino, found.st_ctime_ns if agent.gfids is not None else 0


def _is_still(agent: Agent, row: Row, state: State) -> bool:
    """Whether what is here is what was read. Within a transaction. Raises OSError."""
    if agent.gfids is None:
        return row.ino == state[0]
    fd = open_here(agent, row)
    if fd is None:
        return False
    try:
        return _state(agent, fd) == state
    finally:
        os.close(fd)


def _make_clean(agent: Agent, equal: Dict[bytes, Tuple[Item, State]], differ: List[str]) -> List[List[Any]]:
    with agent.transaction():
        rows = agent.index.inodes(equal)
        still = []
        for gfid, (item, state) in equal.items():
            row = rows.get(gfid)
            if row is None or not _is_still(agent, row, state):
                differ.append(gfid.hex())
                continue
            if row.dirty and not row.takes(item.ticket):
                continue
            row.took(item.ticket)
            row.size = item.size
            row.gen = agent.index.meta["gen"]
            row.changed = True
            still.append(item)
        agent.index.save(rows.values(), [], [])
        return came(agent, still) if agent.content_only else apply_items(agent, still, content_too=True)
