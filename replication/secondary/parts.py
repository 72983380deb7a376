"""Listings of large directories, which come in parts: nothing is absent before the last."""

from __future__ import annotations

from replication.secondary import sql
from replication.secondary.agent import Agent
from replication.secondary.index import Row
from replication.secondary.observed import GFID, NAME, Listing
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
