"""Content that came along with the first observation of its file: placed by the transaction that makes its row.

That is the plain case, and nearly every small file's: an inode that was unknown, under one name at which nothing
was known to stand. Whatever else it may be is left to receiver.place, in a transaction of its own.
"""

from __future__ import annotations

import errno
from typing import Dict, List, Set, Tuple

from replication.secondary import faults
from replication.secondary.agent import Agent
from replication.secondary.index import Key, Row
from replication.secondary.receiver import place_ahead, place_one, record
from replication.secondary.reconcile import Plan
from replication.secondary.staged import Staged

Content = Dict[bytes, Staged]


def place_new(agent: Agent, plan: Plan, content: Content, ticket: int) -> Set[bytes]:
    """After the steps of a plan, before its rows are saved. Returns the gfids of what has its content now.

    ``ticket``: of the look that the content came with. What could not be placed goes on being wanted, and what is
    wrong with it is said when it comes again. Raises OSError for whatever concerns more than one object.
    """
    # On a volume a file may have been written as another object: a twin has one of its gfid aside.
    ready = _plain(plan, {g: file for g, file in content.items() if agent.gfids is None or file.is_right})
    if not ready:
        return set()
    # The inode is known before it has its name: recovery recognises it by that.
    agent.announce([(row, [key]) for _, row, key in ready], [], [file.ino for file, _, _ in ready])
    placed: Set[bytes] = set()
    there = place_ahead(agent, [(file, row, [key]) for file, row, key in ready])
    for file, row, key in ready:
        faults.point("place")
        try:
            if row.id not in there:
                place_one(agent, file, row, [key])
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            continue
        file.item.ticket = ticket
        record(agent, row, file)
        placed.add(row.gfid)
    return placed


def _plain(plan: Plan, content: Content) -> List[Tuple[Staged, Row, Key]]:
    names: Dict[int, List[Key]] = {}
    for parent, name, inode in plan.add:
        names.setdefault(inode, []).append((parent, name))
    ready = []
    for gfid, file in content.items():
        row = plan.rows.get(gfid)
        if row is None or not row.new or row.ino:
            continue
        keys = names.get(row.id, [])
        if len(keys) == 1 and plan.current.get(keys[0]) is None:
            ready.append((file, row, keys[0]))
    return ready
