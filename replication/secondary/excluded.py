"""Names that the filters leave out: not ours any more. What stands there is neither changed nor taken away by us.

It matters once, when rules begin to leave out what was replicated before: the index forgets it, and from then on
it is as if somebody else had put it there.
"""

from __future__ import annotations

import stat
from typing import Dict, List, Tuple

from replication.secondary import sql
from replication.secondary.agent import Agent
from replication.secondary.index import Key


def left_out(agent: Agent, parent: int, gone: Dict[bytes, int]) -> List[Tuple[Key, int]]:
    """Of names that a complete listing of ``parent`` does not have: those that the filters leave out, and what each stands for."""
    if not agent.filters:
        return []
    rows = agent.index.inodes_by_id(gone.values())
    return [
        ((parent, name), inode)
        for name, inode in gone.items()
        if agent.filters.excludes(
            agent.tree.path((parent, name)), inode in rows and stat.S_ISDIR(rows[inode].mode)
        )
    ]


def forget(agent: Agent, names: List[Tuple[Key, int]]) -> None:
    """Names that are left out, once all that moves elsewhere by the same request has done so. Within a transaction."""
    rows = agent.index.inodes_by_id(inode for _, inode in names)
    for key, inode in names:
        if agent.index.entry(*key) != inode:
            continue
        agent.namespace.shadows.forget([key])
        agent.index.db.execute(sql.DROP_ENTRY, key)
        agent.tree.forget(inode)
        agent.index.drop([rows[inode]] if inode in rows else [])
    agent.index.reset_digests({key[0] for key, _ in names})
