"""Deltas by blocks: the file under way begins as a copy of the version that is here, and blocks that differ are sent.

A transfer of this kind may hold anything when it is taken up again: each of its blocks is compared. On a volume nothing is
copied: what changes is written into the file that is here (changes.py).
"""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Any, Dict, List

from replication.secondary.agent import Agent
from replication.secondary.basis import copy_data
from replication.secondary.content_only import open_here
from replication.secondary.observed import gfid_of
from replication.secondary.protocol import AgentError
from replication.secondary.transfers import BLOCK, Transfer, abandon, under_way

_MOST = 64 << 20  # of one request: more, and we would seem dead


def file_blocks(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Digests of a range of the file under way, whose missing part is copied from the version here first."""
    gfid = gfid_of(request["gfid"])
    transfer = under_way(agent, gfid)
    start, length = int(request["offset"]), int(request["length"])
    if start < 0 or start % BLOCK or not 0 < length <= _MOST:
        raise AgentError("protocol", "not a range of blocks")
    stop = min(start + length, transfer.size)
    if transfer.changes is not None:
        return {"digests": transfer.changes.digests(start, stop)}
    try:
        _fill(agent, gfid, transfer, stop)
    except OSError:
        abandon(agent, gfid)  # no room for a copy, perhaps: what there is of it must not be in the way
        raise
    digests: List[str] = []
    for offset in range(start, stop, BLOCK):
        piece = os.pread(transfer.fd, min(BLOCK, stop - offset), offset)
        digests.append(sha256(piece).hexdigest()[:32] if piece else "")
    return {"digests": digests}


def _fill(agent: Agent, gfid: bytes, transfer: Transfer, stop: int) -> None:
    have = os.fstat(transfer.fd).st_size
    if have >= stop:
        return
    row = agent.index.inode(gfid)
    agent.tree.begin()
    here = open_here(agent, row) if row is not None else None
    if here is None:
        return
    try:
        stop = min(stop, os.fstat(here).st_size)
        copy_data(here, transfer.fd, have, stop)
        if os.fstat(transfer.fd).st_size < stop:
            os.ftruncate(transfer.fd, stop)
    finally:
        os.close(here)
