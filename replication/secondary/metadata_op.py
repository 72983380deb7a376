"""The operation `metadata`: owner, mode, times and all attributes of objects that are here."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Set

from replication.secondary.agent import Agent
from replication.secondary.index import UNCERTAIN, Key, Row
from replication.secondary.metadata import Item, apply_at, dress_existing
from replication.secondary.namespace import limbo_name
from replication.secondary.protocol import AgentError, code_of


def metadata(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """See docs/formats.md."""
    items = [Item(g, 0, *rest) for g, *rest in request["items"]]
    with agent.transaction():
        position, applied = request.get("position"), agent.index.meta.get("applied")
        if position is not None and applied is not None and position < applied:
            raise AgentError("out-of-order", "metadata of position {} after {}".format(position, applied))
        errors = apply_items(agent, items)
    return {"errors": errors}


def apply_items(agent: Agent, items: List[Item], content_too: bool = False) -> List[List[Any]]:
    """Within a transaction. ``content_too``: the content here is known to be that of these items.

    Otherwise a file whose content is wanted, or which changed since it was observed (its ctime is another
    one), keeps its times and version: its content may have changed as well.
    """
    index = agent.index
    rows = index.inodes({item.gfid for item in items})
    agent.tree.rows.update((row.id, row) for row in rows.values())
    names = index.names(row.id for row in rows.values())
    errors: List[List[Any]] = []
    parents: Set[int] = set()
    for item in items:
        row = rows.get(item.gfid)
        if row is None or not row.ino:
            errors.append([item.gfid.hex(), "not-found", "not here (any more)"])
            continue
        keys = names.get(row.id, [])
        current = not row.is_file or content_too
        if not current and not row.dirty and item.ctime:
            current = item.ctime in (row.pctime, -row.pctime)
        try:
            _apply(agent, row, keys, item, current)
        except FileNotFoundError:
            errors.append([item.gfid.hex(), "not-found", "not here (any more)"])
            continue
        except (OSError, AgentError) as error:
            code = error.code if isinstance(error, AgentError) else code_of(error)
            errors.append([item.gfid.hex(), code, "cannot set its metadata: {}".format(error)])
            continue
        if current:
            row.pino, row.pctime = item.ino, item.ctime
        elif row.pctime == UNCERTAIN:
            row.pctime = 0
        row.changed = True
        parents.update(key[0] for key in keys)
    index.save(rows.values(), [], [])
    index.reset_digests(parents)
    return errors


def _apply(agent: Agent, row: Row, keys: List[Key], item: Item, times: bool) -> None:
    if (row.mode ^ item.mode) & 0o170000:
        raise AgentError("protocol", "an inode changed its type")
    tree = agent.tree
    row.mode, row.uid, row.gid = item.mode, item.uid, item.gid
    if times:
        row.mtime, row.atime = item.mtime, item.atime
    if row.is_dir:
        fd = tree.fd(row.id)
        path = b"/proc/self/fd/%d" % fd
        dress_existing(path, os.fstat(fd), row, agent.powers, item.xattrs, times=True)
        # Whatever happens below it in this transaction comes before the times that count.
        tree.touched.setdefault(row.id, False)
    elif keys:
        apply_at(tree.fd(keys[0][0]), keys[0][1], row, row, agent.powers, item.xattrs, times)
    else:
        apply_at(tree.limbo_fd, limbo_name(row), row, row, agent.powers, item.xattrs, times)
