"""Limbo: inodes that lost their last name wait in ``.seamark/limbo`` until they are observed elsewhere, or purged.

Also the mending of directories that somebody else took away.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict, List, Optional

from replication.secondary import faults, held, sql
from replication.secondary.agent import Agent
from replication.secondary.index import Key, Row, is_object_of
from replication.secondary.metadata import dress_directory
from replication.secondary.namespace import limbo_name
from replication.secondary.observe import take_away
from replication.secondary.protocol import AgentError
from replication.secondary.syscalls import list_directory
from replication.secondary.tree import LostDirectory

_AT_ONCE = 1_000  # objects in one transaction: others wait for the lock meanwhile


def purge(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Remove what is stamped with at most ``upto``; foreign objects inside are displaced.

    Before that, what was held goes to limbo as well, if it may (held.py).
    """
    upto = int(request["upto"])
    rule = held.Rule.of(request)
    while _go_on_with_held(agent, rule, upto):
        pass
    removed = 0
    while True:
        with agent.transaction():
            rows = waiting(agent, upto, _AT_ONCE)
            done = 0
            for row in rows:
                faults.point("purge")
                if row.is_dir and rule is not None and not _may_go(agent, row, rule):
                    done += _displace_whole(agent, row)
                    continue
                done += _remove_directory(agent, row, _AT_ONCE - done) if row.is_dir else _remove(agent, row)
                if done >= _AT_ONCE:
                    break
            removed += done
        if not rows:
            left = agent.index.db.execute(sql.LIMBO_LEFT).fetchone()[0]
            if not left and removed:
                with agent.transaction():
                    agent.index.db.execute(sql.FORGET_DEPARTED)
            return {
                "removed": removed, "left": left, "since": held.since(agent), "held": agent.index.holds(),
                "question": held.question(agent, rule, upto),
            }  # fmt: skip


def waiting(agent: Agent, upto: int, most: int) -> List[Row]:
    """What is in limbo with a stamp of at most ``upto``. Within a transaction."""
    rows = [Row(*t) for t in agent.index.db.execute(sql.IN_LIMBO, (upto, most))]
    named = agent.index.names(row.id for row in rows)
    for row in rows:
        if row.id in named:  # an index of an older version may say both: its name counts
            row.limbo, row.changed = None, True
    agent.index.save(rows, [], [])
    return [row for row in rows if row.limbo is not None] or (waiting(agent, upto, most) if rows else [])


def _go_on_with_held(agent: Agent, rule: Optional[held.Rule], upto: int) -> bool:
    """Some of what was held goes to limbo. False: no more of it may."""
    if not agent.index.holds() and not agent.index.meta.get("asked"):
        return False
    with agent.transaction():
        names = held.due(agent, rule, upto, _AT_ONCE)
        if names:
            take_away(agent, names, upto)
            held.release(agent, [key for key, _ in names])
            agent.index.reset_digests({key[0] for key, _ in names})
    return bool(names)


def _may_go(agent: Agent, row: Row, rule: held.Rule) -> bool:
    """Whether a directory in limbo is removed with all that it holds. One that another object replaced took its
    content out of sight uncounted.
    """
    if (row.limbo or 0) <= rule.allowed_ns or not agent.index.entries_of(row.id, 1):
        return True
    if rule.ignore:
        return False
    found = agent.index.db.execute(sql.REMOVED, (row.id,)).fetchone()
    if found is None or found[1]:
        return True
    room = held.limit(agent, rule) - held.already(agent, rule)
    # The name itself is in use, and does not count.
    amount = sum(held.weigh(agent, [((row.id, b""), row.id)], set(), room + 1)) - 1
    if amount > room:
        return False
    agent.index.db.execute(sql.NOTE_REMOVED, (row.id, found[0], amount, time.time_ns()))
    return True


def _displace_whole(agent: Agent, row: Row) -> int:
    """A directory that may not be removed goes to displaced, whole, under the path that it had."""
    found = agent.index.db.execute(sql.REMOVED, (row.id,)).fetchone()
    path = found[0] if found is not None else b".seamark/limbo/" + limbo_name(row)
    if agent.namespace.in_limbo(row):
        agent.namespace.displacer.displace_from(agent.tree.limbo_fd, limbo_name(row), path)
    agent.tree.forget(row.id)
    agent.tree.touched.pop(row.id, None)
    agent.index.drop([row])
    agent.index.db.execute(sql.BACK_BY_INODE, (row.id,))
    return 1


def _remove(agent: Agent, row: Row) -> int:
    name, fd = limbo_name(row), agent.tree.limbo_fd
    try:
        if is_object_of(row, os.stat(name, dir_fd=fd, follow_symlinks=False)):
            os.unlink(name, dir_fd=fd)
        else:
            agent.namespace.displacer.displace_from(fd, name, b".seamark/limbo/" + name)
    except FileNotFoundError:
        pass
    agent.index.drop([row])
    return 1


def _remove_directory(agent: Agent, row: Row, budget: int) -> int:
    """Some of what a directory holds, and itself once it is empty. Directories in it come to limbo themselves."""
    index, tree = agent.index, agent.tree
    fd: Optional[int] = None
    try:
        fd = tree.changing(row.id)
    except LostDirectory:
        pass  # removed, by us before we were killed, or by somebody else
    entries = index.entries_of(row.id, max(budget, 1))
    rows = index.inodes_by_id(entries.values())
    for child in rows.values():
        if child.is_dir:
            child.limbo, child.changed = row.limbo, True
    going = ((rows[i], [(row.id, name)]) for name, i in entries.items() if i in rows)
    agent.announce([(child, keys) for child, keys in going if child.ino], [])
    for name, inode in entries.items():
        faults.point("purge")
        _take_out(agent, rows.get(inode), (row.id, name), fd)
        index.db.execute(sql.DROP_ENTRY, (row.id, name))
    index.save(rows.values(), [], [])
    index.drop(child for child in rows.values() if not (child.is_dir and child.ino))
    if len(entries) < max(budget, 1):
        _finish_directory(agent, row, fd)
    return len(entries) + 1


def _take_out(agent: Agent, child: Optional[Row], key: Key, fd: Optional[int]) -> None:
    """A file's name is removed; a directory comes to limbo, and has no object any more if it is lost."""
    namespace = agent.namespace
    if child is None or not child.ino:
        if fd is not None:
            namespace.shadows.lift(key)
    elif not child.is_dir:
        if fd is not None and namespace.is_ours(child, key):
            os.unlink(key[1], dir_fd=fd)
    elif fd is not None:
        namespace.to_limbo(child, key)
    else:
        namespace.lose(child)


def _finish_directory(agent: Agent, row: Row, fd: Optional[int]) -> None:
    """Nothing of ours is left in it; what is left is not ours."""
    base = b".seamark/limbo/" + limbo_name(row) + b"/"
    if fd is not None:
        for name in list_directory(fd):
            agent.namespace.displacer.displace_from(fd, name, base + name)
        os.rmdir(limbo_name(row), dir_fd=agent.tree.limbo_fd)
    agent.tree.forget(row.id)
    agent.tree.touched.pop(row.id, None)
    agent.index.drop([row])


def heal(agent: Agent, inode: int) -> None:
    """Make a directory again that somebody took away; its names are asked for by the next observation."""
    while True:
        try:
            with agent.transaction():
                _heal(agent, inode)
            return
        except LostDirectory as above:
            if above.inode == inode:
                raise AgentError("io", "cannot mend a lost directory") from None
            inode = above.inode


def _heal(agent: Agent, inode: int) -> None:
    index, tree, namespace = agent.index, agent.tree, agent.namespace
    row = index.inode_by_id(inode)
    if row is None:
        return
    names = index.names_of(inode)
    key = names[0] if names else None
    tree.forget(inode)
    if key is not None and namespace.is_ours(row, key):
        return
    namespace.lose(row)
    if key is None:
        index.drop([row])
        return
    agent.announce([(row, [key])], [])
    namespace.create(row, key, None)
    dress_directory(tree.fd(inode), row, agent.powers)
    row.changed = True
    index.save([row], [], [])
    index.reset_digests([key[0]])
    agent.healed.add(row.gfid)
