"""Names that the filters leave out: not ours any more. What stands there is neither changed nor taken away by us.

It matters once, when rules begin to leave out what was replicated before: the index forgets it, and from then on
it is as if somebody else had put it there.
"""

from __future__ import annotations

import stat
from typing import Collection, Dict

from replication.secondary import sql
from replication.secondary.agent import Agent


def forget(agent: Agent, parent: int, gone: Dict[bytes, int], observed: Collection[int]) -> Dict[bytes, int]:
    """Of names that a complete listing of ``parent`` does not have: those that are really gone.

    The others are left out by the filters, and forgotten; but for inodes that were ``observed`` under another name,
    which move there. Within a transaction.
    """
    if not agent.filters:
        return gone
    rows = agent.index.inodes_by_id(gone.values())
    kept = {}
    for name, inode in gone.items():
        is_dir = inode in rows and stat.S_ISDIR(rows[inode].mode)
        if inode in observed or not agent.filters.excludes(agent.tree.path((parent, name)), is_dir):
            kept[name] = inode
            continue
        _forget(agent, parent, name, inode, is_dir)
    return kept


def _forget(agent: Agent, parent: int, name: bytes, inode: int, is_dir: bool) -> None:
    db = agent.index.db
    agent.namespace.shadows.forget([(parent, name)])
    db.execute(sql.DROP_ENTRY, (parent, name))
    if is_dir:
        agent.index.forget_below(inode)
        agent.tree.forget(inode)
    db.execute(sql.DROP_NAMELESS, (inode,))
    agent.index.reset_digests([parent])
