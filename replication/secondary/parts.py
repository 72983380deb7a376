"""Listings of large directories, which come in parts: nothing is absent before the last."""

from __future__ import annotations

import stat
from typing import Dict, List, Set, Tuple

from replication.secondary import sql
from replication.secondary.agent import Agent
from replication.secondary.index import Row
from replication.secondary.observed import GFID, MODE, NAME, Listing
from replication.secondary.protocol import AgentError


def note_seen(agent: Agent, parent: Row, listing: Listing) -> None:
    """What a part has waits in a table of this connection. Raises AgentError for one that is not the next."""
    db = agent.index.db
    expected = agent.parts.get(parent.gfid, 0)
    if listing.part == 0:
        db.execute(sql.FORGET_SEEN, (parent.id,))
    elif listing.part != expected:
        raise AgentError("out-of-order", "part {} of a listing after {}".format(listing.part, expected))
    agent.parts[parent.gfid] = listing.part + 1
    db.executemany(sql.ADD_SEEN, [(parent.id, e[NAME]) for e in listing.entries if e[GFID] is not None])
    if listing.last:
        del agent.parts[parent.gfid]


def parents_first(listings: List[Listing], rows: Dict[bytes, Row]) -> Tuple[List[Listing], List[str]]:
    """In the order given, but none before its directory is known; also the directories of those that stay unknown."""
    ordered: List[Listing] = []
    coming: Set[bytes] = set()
    pending = listings
    while pending:
        later = []
        for listing in pending:
            row = rows.get(listing.parent)
            if row.is_dir if row is not None else listing.parent in coming:
                ordered.append(listing)
                coming.update(
                    e[GFID] for e in listing.entries if e[GFID] is not None and stat.S_ISDIR(e[MODE])
                )
            else:
                later.append(listing)
        if len(later) == len(pending):
            return ordered, list({listing.parent.hex(): None for listing in later})
        pending = later
    return ordered, []
