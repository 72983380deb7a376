"""Making a secondary complete in itself: what is half done is finished or rolled back, for good.

What the journal names is looked up, what waits in limbo goes back to its last name, shadows become files of their own,
and staging is emptied.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from typing import Dict, Iterator, List, Optional

from replication.secondary import faults, layout, limbo, sql
from replication.secondary.agent import Agent
from replication.secondary.clones import clone, copy_content
from replication.secondary.index import Index, Key, Row
from replication.secondary.namespace import limbo_name
from replication.secondary.protocol import AgentError
from replication.secondary.steps import Work
from replication.secondary.syscalls import list_directory, rename_new
from replication.secondary.tree import LostDirectory

SHOWN = 1_000  # paths of files that may be half written
_AT_ONCE = 500
_DEEPEST = 10_000
_MARGIN_NS = 500_000_000  # clocks of looks and of changes


def complete(agent: Agent) -> Work:
    """Finish or roll back what is half done. ``agent`` is open for writing, and alone. May be done again. A step now and then.

    Gives ``restored``: objects that went back from limbo to their last name; ``displaced``: those whose name
    is taken, kept in displaced; ``missing``: files whose content had not come; ``wanted``: files whose newest
    content had not come, and whose older one stands; ``torn``: paths of files that may be half written.
    """
    with agent.transaction():  # replays the journal, if there is one
        counts = {"restored": 0, "displaced": 0}
    _purge_what_is_gone(agent)
    while _put_back(agent, counts):
        yield _AT_ONCE
    yield from _make_shadows_files(agent)
    _empty_staging(agent)
    db = agent.index.db
    missing, wanted = db.execute(
        "SELECT coalesce(sum(ino = 0), 0), coalesce(sum(ino <> 0 AND dirty <> 0), 0) FROM inode WHERE limbo IS NULL"
    ).fetchone()
    torn = [path_of(agent.index, key) for key in db.execute(sql.TORN, (SHOWN,)).fetchall()]
    return {**counts, "missing": missing, "wanted": wanted, "torn": torn}


def _purge_what_is_gone(agent: Agent) -> None:
    """What lost its last name before the mark was deleted: it would have been removed next.

    Where deletions are limited, or held, a person may want them back: then they are.
    """
    try:
        mark_ns = int(json.loads(str(agent.index.meta.get("mark")))["stime_ns"])
    except (ValueError, KeyError, TypeError):
        return
    limited = agent.index.db.execute(sql.ANY_REMOVED).fetchone() is not None
    if not (limited or agent.index.holds() or agent.index.meta.get("asked")):
        limbo.purge(agent, {"upto": mark_ns - _MARGIN_NS})


def path_of(index: Index, key: Key) -> str:
    """A name's path from the root, as str by os.fsdecode; what is in limbo begins there."""
    parts = [key[1]]
    at = key[0]
    while at != layout.ROOT_ID and len(parts) < _DEEPEST:
        names = index.names_of(at)
        if not names:
            parts.append(b"(limbo)")
            break
        at, name = names[0]
        parts.append(name)
    return os.fsdecode(b"/".join(reversed(parts)))


def _put_back(agent: Agent, counts: Dict[str, int]) -> bool:
    """Some of what is in limbo; False: nothing is left there."""
    with agent.transaction():
        rows = limbo.waiting(agent, 1 << 62, _AT_ONCE)
        for row in rows:
            _one_back(agent, row.id, counts)
        if not rows:
            agent.index.db.execute(sql.FORGET_DEPARTED)
    return bool(rows)


def _one_back(agent: Agent, inode: int, counts: Dict[str, int]) -> None:
    """One object, and first the directory that it was in, if that is in limbo too."""
    chain: List[Row] = []
    at: Optional[int] = inode
    while at is not None and len(chain) < _DEEPEST:
        row = agent.index.inode_by_id(at)
        if row is None or row.limbo is None or any(row.id == known.id for known in chain):
            break
        chain.append(row)
        key = _last_name(agent, row)
        at = key[0] if key is not None else None
    for row in reversed(chain):
        faults.point("back")
        counts["restored" if _back(agent, row) else "displaced"] += 1


def _last_name(agent: Agent, row: Row) -> Optional[Key]:
    found = agent.index.db.execute(sql.DEPARTED, (row.id,)).fetchone()
    return (found[0], found[1]) if found is not None else None


def _back(agent: Agent, row: Row) -> bool:
    """Whether it is at its last name again; if not, it is displaced, or was not there at all."""
    index, tree, name = agent.index, agent.tree, limbo_name(row)
    key = _last_name(agent, row)
    if not agent.namespace.in_limbo(row):
        _forget(agent, row)
        return False
    if key is not None and _reachable(agent, key[0]):
        agent.announce([(row, [key])], [])
        standing = agent.namespace.standing(key)
        if standing is None:
            rename_new(tree.limbo_fd, name, tree.changing(key[0]), key[1])
        elif standing.st_ino == row.ino and not row.is_dir:  # its shadow: another link of itself
            os.unlink(name, dir_fd=tree.limbo_fd)
        if standing is None or (standing.st_ino == row.ino and not row.is_dir):
            before = index.entry(*key)
            row.limbo, row.changed = None, True
            index.save([row], [(key[0], key[1], row.id)], [])
            if before is not None and before != row.id:
                index.drop(index.inodes_by_id([before]).values())  # no object of it stands here
            agent.namespace.shadows.forget([key])
            if row.is_dir:
                tree.forget(row.id)
                tree.moved[row.id] = key
            return True
    path = tree.path(key) if key is not None and _reachable(agent, key[0]) else name
    agent.namespace.displacer.displace_from(tree.limbo_fd, name, b"limbo/" + path)
    _forget(agent, row)
    return False


def _reachable(agent: Agent, directory: int) -> bool:
    row = agent.index.inode_by_id(directory)
    if row is None or row.limbo is not None or not row.ino:
        return False
    try:
        agent.tree.fd(directory)
    except (LostDirectory, AgentError):
        return False
    return True


def _forget(agent: Agent, row: Row) -> None:
    if row.is_dir:
        agent.tree.forget(row.id)
        agent.tree.touched.pop(row.id, None)
    agent.index.drop([row])


def _make_shadows_files(agent: Agent) -> Iterator[int]:
    """What stands at a name whose new content never came stays there: as a file of its own, no link of another."""
    with agent.transaction():
        shadows = agent.namespace.shadows
        for parent, name, ino, _ in agent.index.db.execute(sql.SHADOWS).fetchall():
            key = (parent, name)
            try:
                found = agent.namespace.standing(key)
            except LostDirectory:
                found = None
            if (
                found is not None
                and found.st_ino == ino
                and found.st_nlink > 1
                and stat.S_ISREG(found.st_mode)
            ):
                yield from _copy_over(agent, key, found)
            shadows.forget([key])


def _copy_over(agent: Agent, key: Key, found: os.stat_result) -> Iterator[int]:
    """Replace a name's link by a copy, which shares its blocks where that can be: content, holes, owner, mode, attributes, times."""
    fd = agent.tree.changing(key[0])
    aside = agent.next_staging_name()
    source = os.open(key[1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    target = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=agent.staging_fd)
    try:
        try:
            clone(source, target)
        except OSError:
            yield from copy_content(source, target, found.st_size)
        if agent.powers.chown:
            os.fchown(target, found.st_uid, found.st_gid)
        shutil.copystat("/proc/self/fd/{}".format(source), "/proc/self/fd/{}".format(target))
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(source)
        os.close(target)
    faults.point("copied")
    os.rename(aside, key[1], src_dir_fd=agent.staging_fd, dst_dir_fd=fd)


def _empty_staging(agent: Agent) -> None:
    """What came of files that are not complete: nobody sends the rest."""
    staging = agent.tree.staging_fd
    for name in list_directory(staging):
        if name == agent.staging_name:
            continue
        try:
            os.unlink(name, dir_fd=staging)
        except OSError:  # a directory
            shutil.rmtree(b"/proc/self/fd/%d/%s" % (staging, name), ignore_errors=True)
