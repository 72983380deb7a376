"""Connections that bring content alone: workers which see the primary through a mount of another host.

What such a mount shows of owners, ACLs and attributes is not the primary's truth (NFS maps owners, and has no
trusted attributes). So a file keeps here what it has, and is private where it is new; its version says that its
metadata is still to come (pctime below 0), and the primary's own node sends it.
"""

from __future__ import annotations

import os
from base64 import b64encode
from typing import Any, Dict, List, Optional

from replication.secondary.agent import Agent
from replication.secondary.index import UNCERTAIN, Row
from replication.secondary.metadata import Item, replicated
from replication.secondary.mounting import drop_pages
from replication.secondary.namespace import limbo_name

_PRIVATE = 0o170700  # the type, and what the owner may


def undress(agent: Agent, items: List[Item]) -> None:
    """Have these say nothing but what their content is, if that is all that this connection knows. Raises OSError."""
    if not agent.content_only:
        return
    rows = agent.index.inodes(item.gfid for item in items)
    for item in items:
        row = rows.get(item.gfid)
        if row is not None and row.is_file:
            _undress(agent, item, row)


def _undress(agent: Agent, item: Item, row: Row) -> None:
    item.ctime = -item.ctime or UNCERTAIN
    fd = open_here(agent, row)
    if fd is None:
        item.mode, item.uid, item.gid, item.xattrs = row.mode & _PRIVATE, row.uid, row.gid, {}
        return
    try:
        found = os.fstat(fd)
        item.mode, item.uid, item.gid = found.st_mode, found.st_uid, found.st_gid
        item.xattrs = _xattrs(agent, fd)
    finally:
        os.close(fd)


def _xattrs(agent: Agent, fd: int) -> Dict[str, str]:
    try:
        names = os.listxattr(fd)
    except OSError:
        return {}  # this file system has none
    return {
        name: b64encode(os.getxattr(fd, name)).decode() for name in names if replicated(name, agent.powers)
    }


def open_here(agent: Agent, row: Row) -> Optional[int]:
    """The version of a file that is here, for reading; None when there is none. Raises OSError."""
    if not row.ino or not row.is_file:
        return None
    keys = agent.index.names_of(row.id)
    dir_fd = agent.tree.fd(keys[0][0]) if keys else agent.tree.limbo_fd
    name = keys[0][1] if keys else limbo_name(row)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    if os.fstat(fd).st_ino == row.ino:
        drop_pages(fd)
        return fd
    os.close(fd)
    return None


def came(agent: Agent, items: List[Item]) -> List[List[Any]]:
    """Within a transaction, in the place of apply_items: the content here is that of these; no errors."""
    index = agent.index
    rows = index.inodes(item.gfid for item in items)
    for item in items:
        row = rows[item.gfid]
        if (row.pino, row.pctime) != (item.ino, -item.ctime):  # or a twin's metadata is here already
            row.pino, row.pctime = item.ino, item.ctime
            row.changed = True
    index.save(rows.values(), [], [])
    index.reset_digests(
        key[0] for keys in index.names(row.id for row in rows.values()).values() for key in keys
    )
    return []
