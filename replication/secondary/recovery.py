"""After a transaction that did not end: make the index say what is really there.

The journal names the inodes it was about to move, make or replace, and the places where they may be now. Looking there is
enough; nothing is undone or redone, the primary's next observation brings the rest.
"""

from __future__ import annotations

import os
import stat
from typing import Any, Dict, Iterator, List, Optional, Tuple

from replication.secondary import sql
from replication.secondary.agent import Agent
from replication.secondary.index import Key, Row, is_object_of, unsigned
from replication.secondary.namespace import limbo_name
from replication.secondary.tree import LostDirectory

_Line = Tuple[List[Any], int]  # what the journal says of one inode, and when

_CLOCK_GRAIN_NS = 100_000_000  # ctime comes from a coarser clock than ours


def replay(agent: Agent, records: Iterator[Dict[str, Any]]) -> None:
    """Within a transaction and with the lock held. Raises OSError, sqlite3.Error."""
    directories: List[_Line] = []
    others: List[_Line] = []
    data: List[List[Any]] = []
    for record in records:
        for line in record.get("n", ()):
            (directories if stat.S_ISDIR(line[1]) else others).append((line, record["at"]))
        data += record.get("d", ())
    replaced: List[int] = []
    _directories(agent, directories, replaced)
    for line, at in others:
        _names(agent, line, at, replaced)
    # What stood at a name that is another's now, and was found nowhere else.
    rows = agent.index.inodes_by_id(replaced).values()
    agent.index.drop(row for row in rows if row.limbo is None)
    for gfid, ino in data:
        _content(agent, bytes.fromhex(gfid), ino)
    _shadows(agent)


def _directories(agent: Agent, lines: List[_Line], replaced: List[int]) -> None:
    """What is in a directory can be looked at once the index says where that is; it may have been made, or moved, by
    the same transaction. So each that is found may be the way to others.
    """
    while lines:
        left = [(line, at) for line, at in lines if not _names(agent, line, at, replaced, given_up=False)]
        if len(left) == len(lines):
            break
        lines = left
    for line, at in lines:
        _names(agent, line, at, replaced)


def _look(agent: Agent, key: Key) -> Optional[os.stat_result]:
    try:
        return os.stat(key[1], dir_fd=agent.tree.fd(key[0]), follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError, LostDirectory):
        return None


def _names(agent: Agent, line: List[Any], at: int, replaced: List[int], given_up: bool = True) -> bool:
    """Whether the inode was found. If not: it is forgotten, or (not ``given_up``) nothing is changed.

    ``replaced`` gets the inodes that had its names until now.
    """
    gfid_hex, mode, ino, limbo, places = line
    index, tree = agent.index, agent.tree
    gfid = bytes.fromhex(gfid_hex)
    row = index.inode(gfid)
    keys: List[Key] = []
    for parent_hex, name in places:
        parent = index.inode(bytes.fromhex(parent_hex))
        if parent is not None:
            keys.append((parent.id, os.fsencode(name)))
            tree.touched.setdefault(parent.id, False)
    here = {key: found for key in keys for found in (_look(agent, key),) if found is not None}
    if row is None or not row.ino:
        row = _made(agent, row, gfid, mode, ino, here, at)
        if row is None:
            return False
    standing = [key for key, found in here.items() if is_object_of(row, found)]
    in_limbo = _in_limbo(agent, row)
    if not standing and not in_limbo and not given_up:
        return False
    _set_names(agent, row, keys, standing, replaced)
    named = bool(index.names_of(row.id))
    if in_limbo and named:
        # A directory of an older life, or a file that was on its way, by a link: its name counts.
        in_limbo = False
        if not row.is_dir:
            os.unlink(limbo_name(row), dir_fd=tree.limbo_fd)
    row.limbo = (limbo if limbo is not None else 0) if in_limbo else None
    if in_limbo and limbo is None:
        row.limbo = at  # on its way through limbo: its new name is observed again soon
    if in_limbo and keys:
        index.db.execute(sql.SAVE_DEPARTED, (row.id, *keys[0]))
    if not in_limbo and not named:
        index.drop([row])
        return False
    row.pctime = min(row.pctime, 0)
    row.changed = True
    index.save([row], [], [])
    if row.is_dir:
        tree.forget(row.id)
        tree.moved.pop(row.id, None)
    return True


def _set_names(agent: Agent, row: Row, keys: List[Key], standing: List[Key], replaced: List[int]) -> None:
    index = agent.index
    for key in keys:
        current = index.entry(*key)
        if key in standing:
            if current != row.id:
                index.save([], [(key[0], key[1], row.id)], [])
                if current is not None:
                    replaced.append(current)
        elif current == row.id:
            index.save([], [], [key])
        index.reset_digests([key[0]])


def _in_limbo(agent: Agent, row: Row) -> bool:
    try:
        found = os.stat(limbo_name(row), dir_fd=agent.tree.limbo_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return is_object_of(row, found)


def _made(
    agent: Agent, row: Optional[Row], gfid: bytes, mode: int, ino: int, here: Dict[Key, os.stat_result], at: int
) -> Optional[Row]:  # fmt: skip
    """What a creation that was not committed has left, if it got that far."""
    for key, found in here.items():
        fresh = found.st_ctime_ns >= at - _CLOCK_GRAIN_NS and ino in (0, found.st_ino)
        if not fresh or stat.S_IFMT(found.st_mode) != stat.S_IFMT(mode):
            continue
        if found.st_ino == agent.namespace.shadows.at(key):
            continue
        owner = agent.index.entry(*key)
        if owner is not None and (row is None or owner != row.id):
            known = agent.index.inode_by_id(owner)
            if known is not None and known.ino == found.st_ino:
                continue  # what it was to come after
        if row is None:
            row = Row(
                agent.index.take_ids(1), gfid, found.st_mode, found.st_uid, found.st_gid, found.st_size,
                found.st_mtime_ns, found.st_atime_ns, found.st_rdev,
            )  # fmt: skip
            row.new = True
        if row.is_file and found.st_size:
            row.dirty = 1
        row.ino = found.st_ino
        row.changed = True
        agent.index.save([row], [], [])
        return row
    return None


def _content(agent: Agent, gfid: bytes, ino: int) -> None:
    """A file was to get new content under all its names: some may have it."""
    row = agent.index.inode(gfid)
    if row is None or row.ino == ino:
        return
    keys = agent.index.names_of(row.id)
    here = {key: found for key in keys for found in (_look(agent, key),) if found is not None}
    have = [key for key, found in here.items() if found.st_ino == ino]
    if not have:
        if not keys:
            _content_in_limbo(agent, row, ino)
        return
    for key, found in here.items():
        agent.tree.touched.setdefault(key[0], False)
        if key not in have and found.st_ino in (row.ino, agent.namespace.shadows.at(key)):
            _relink(agent, have[0], key)
    for key in keys:
        if key not in here:
            try:
                _link(agent, have[0], key)
            except (OSError, LostDirectory):
                continue  # whoever looks there next mends it
        agent.index.reset_digests([key[0]])
    row.ino = ino
    row.dirty = 1
    row.changed = True
    agent.index.save([row], [], [])


def _content_in_limbo(agent: Agent, row: Row, ino: int) -> None:
    before, row.ino = row.ino, ino
    if _in_limbo(agent, row):
        row.dirty = 1
        row.changed = True
        agent.index.save([row], [], [])
    else:
        row.ino = before


def _shadows(agent: Agent) -> None:
    """Those which were replaced or removed, or whose names have objects again, are none any more."""
    shadows = agent.namespace.shadows
    over = []
    for parent, name, ino, object_ino in agent.index.db.execute(sql.SHADOWS):
        found = _look(agent, (parent, name))
        if found is None or found.st_ino != unsigned(ino) or object_ino != 0:
            over.append((parent, name))
    shadows.forget(over)


def _link(agent: Agent, source: Key, key: Key) -> None:
    source_fd, fd = agent.tree.fd(source[0]), agent.tree.fd(key[0])
    os.link(source[1], key[1], src_dir_fd=source_fd, dst_dir_fd=fd, follow_symlinks=False)


def _relink(agent: Agent, source: Key, key: Key) -> None:
    """Another name of the new inode in place of one of the old."""
    aside = agent.next_staging_name()
    source_fd, fd = agent.tree.fd(source[0]), agent.tree.fd(key[0])
    os.link(source[1], aside, src_dir_fd=source_fd, dst_dir_fd=agent.staging_fd, follow_symlinks=False)
    os.rename(aside, key[1], src_dir_fd=agent.staging_fd, dst_dir_fd=fd)
