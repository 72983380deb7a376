"""Whose observations are taken: those of the open crawl, or of the changelog position that is next.

Serial order is not left to whoever sends: a twin of an old segment that wakes up late is refused here.
"""

from __future__ import annotations

from typing import Any, Dict

from replication.secondary.agent import Agent
from replication.secondary.protocol import AgentError


def admit(agent: Agent, request: Dict[str, Any]) -> None:
    """Only the open crawl, or the next position. Raises AgentError."""
    meta = agent.index.meta
    position, crawl = request.get("position"), request.get("crawl")
    if (position is None) == (crawl is None):
        raise AgentError("protocol", "either a position or a crawl")
    if crawl is not None:
        if crawl != meta.get("crawl"):
            raise AgentError("crawl-closed", "crawl {} is not open".format(crawl))
        return
    assert position is not None
    applied = meta.get("applied")
    # Positions without records are not sent: each says which one it comes after.
    if applied is not None and applied not in (position, request.get("after", position - 1)):
        raise AgentError("out-of-order", "position {} after {}".format(position, applied))
    current = meta.get("current")
    if applied is None and current is not None and position != current:
        raise AgentError("out-of-order", "position {} while {} is not complete".format(position, current))
