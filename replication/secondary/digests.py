"""One digest for all names and versions of a directory: equal on both sides, nothing below it needs a look.

blake2b-128 over, for each name in the order of bytes: name, NUL, "<QQ" (inode number and ctime in ns on the
primary; ctime 0 while it is not here completely).
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Dict, List, Tuple, Union

from replication.secondary import sql
from replication.secondary.agent import Agent
from replication.secondary.index import Index, Row
from replication.secondary.observed import gfid_of

if TYPE_CHECKING:
    from replication.secondary.onlooker import Onlooker

_VERSION = struct.Struct("<QQ")


def digest_of(index: Index, directory: int) -> bytes:
    """Computed from the index, in memory for a few names."""
    digest = blake2b(digest_size=16)
    update, pack = digest.update, _VERSION.pack
    versions = sql.VERSIONS_THERE if index.holds() else sql.VERSIONS
    for name, ino, ctime in index.db.execute(versions, (directory,)):
        update(name + b"\0" + pack(ino, ctime))
    return digest.digest()


def digests(agent: Union[Agent, Onlooker], request: Dict[str, Any]) -> Dict[str, Any]:
    """Which of the directories differ, by their position in the request. See docs/formats.md."""
    index = agent.index
    asked = [(gfid_of(g), bytes.fromhex(d)) for g, d in request["dirs"]]
    rows = index.inodes(g for g, _ in asked)
    fresh: List[Tuple[bytes, int]] = []
    differ = []
    for i, (gfid, digest) in enumerate(asked):
        row = rows.get(gfid)
        if row is None or not row.listed or _digest(index, row, fresh) != digest:
            differ.append(i)
    if fresh and isinstance(agent, Agent) and not agent.read_only:
        _keep(agent, fresh)
    return {"differ": differ}


def _digest(index: Index, row: Row, fresh: List[Tuple[bytes, int]]) -> bytes:
    if row.digest is None:
        row.digest = digest_of(index, row.id)
        fresh.append((row.digest, row.id))
    return row.digest


def _keep(agent: Agent, fresh: List[Tuple[bytes, int]]) -> None:
    """Keep computed digests, unless something was written since they were computed."""
    before = agent.index.db.execute("PRAGMA data_version").fetchone()
    with agent.transaction():
        if agent.index.db.execute("PRAGMA data_version").fetchone() == before:
            agent.index.db.executemany(sql.SET_DIGEST, fresh)
