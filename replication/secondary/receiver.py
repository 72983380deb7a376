"""Content: written aside without a name (O_TMPFILE), then given its names in one transaction.

A reader sees the old content or the new one. A file with several names gets the new inode under each of
them in the same transaction, so that they stay one file.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from contextlib import ExitStack, suppress
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from replication.secondary import crowd, faults, through
from replication.secondary.agent import Agent
from replication.secondary.index import Key, Row
from replication.secondary.metadata import Item, dress_new
from replication.secondary.namespace import limbo_name
from replication.secondary.protocol import AgentError, code_of
from replication.secondary.staged import Staged
from replication.secondary.syscalls import link_descriptor

Errors = List[List[Any]]
Files = Sequence[Tuple[Item, memoryview]]
_CHANGED = "another worker was at this file; it is tried again"


def close_all(agent: Agent, staged: List[Staged]) -> None:
    if agent.gfids is None:
        for file in staged:
            file.close()
    else:
        crowd.each(Staged.close, staged)


def stage(agent: Agent, files: Files, staged: List[Staged], errors: Errors) -> None:
    """Write files aside; what goes wrong is an error of their own. Raises AgentError, OSError for what concerns all of them.

    Of one that comes twice, by two of its names, the later is taken: two threads would make an object of its gfid each.
    """
    latest = list({item.gfid: (item, content) for item, content in files}.values())
    if agent.gfids is None:
        for item, content in latest:
            _stage_one(agent, item, content, False, staged, errors)
        return
    for group in crowd.groups(latest):
        with agent.gfids.making(agent.tree.staging_fd) as look:
            crowd.each(lambda one: _stage_one(agent, one[0], one[1], look, staged, errors), group)
        if look:
            agent.gfids.refuse_if_away()  # once for all: nothing has a name yet


def _stage_one(
    agent: Agent, item: Item, content: memoryview, look: bool, staged: List[Staged], errors: Errors
) -> None:
    """A file, or what went wrong, is added to its list. ``look``: whether an object of its volume has its gfid."""
    if not stat.S_ISREG(item.mode):
        raise AgentError("protocol", "content for what is no regular file")
    mode = item.mode & 0o777
    file: Optional[Staged] = None
    try:
        file = _new_file(agent, item, mode, look)
        if item.extents is None:
            write_all(file.fd, content)
        else:
            _write_extents(file.fd, item, content)
        dress_new(file.fd, item, agent.powers, mode)
        if file.is_right:
            os.fsync(file.fd)  # a client of a volume has no syncfs(2)
    except OSError as error:
        if file is not None:
            file.close()
        errors.append([item.gfid.hex(), code_of(error), "cannot write it here: {}".format(error.strerror)])
        return
    staged.append(file)


def _new_file(agent: Agent, item: Item, mode: int, look: bool) -> Staged:
    if agent.gfids is not None:
        # Just before it is made, for another agent may be making it.
        there = look and agent.gfids.seen(item.gfid) is not None
        made = None if there else through.new_file(agent, item.gfid, stat.S_IFREG | mode)
        if made is not None:
            return Staged(item, made[0], os.fstat(made[0]).st_ino, agent.staging_fd, made[1], is_right=True)
    if agent.tmpfile:
        try:
            fd = os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=agent.staging_fd)
            return Staged(item, fd, os.fstat(fd).st_ino, agent.staging_fd, None)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
            agent.tmpfile = False
    name = agent.next_staging_name()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(name, flags, mode, dir_fd=agent.staging_fd)
    return Staged(item, fd, os.fstat(fd).st_ino, agent.staging_fd, name)


def write_all(fd: int, content: memoryview) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _write_extents(fd: int, item: Item, content: memoryview) -> None:
    """Only what is not a hole; ``extents`` are [offset, length] in bytes."""
    at = 0
    for start, length in item.extents or ():
        offset = start
        piece = content[at : at + length]
        at += length
        while piece:
            written = os.pwrite(fd, piece, offset)
            piece = piece[written:]
            offset += written
    os.ftruncate(fd, item.size)


def place(agent: Agent, staged: List[Staged], errors: Errors) -> int:
    """Give staged files their names, in one transaction. Returns how many it were.

    What nobody waits for any more is left out (Row.takes).
    """
    done = 0
    if agent.gfids is not None:
        staged, through_items = through.settle(agent, staged, errors)
        done = len(through_items)
    return done + _place(agent, staged, errors)


def _place(agent: Agent, staged: List[Staged], errors: Errors) -> int:
    if not staged:
        return 0
    index = agent.index
    with agent.transaction():
        rows = index.inodes(file.item.gfid for file in staged)
        names = index.names(row.id for row in rows.values())
        ready: List[Tuple[Staged, Row, List[Key]]] = []
        for file in staged:
            row = rows.get(file.item.gfid)
            keys = names.get(row.id, []) if row is not None else []
            if row is None or not row.is_file or (not keys and not row.ino):
                errors.append([file.item.gfid.hex(), "not-found", "no name for it here any more"])
            elif row.takes(file.item.ticket):
                if agent.gfids is None or file.is_right:
                    ready.append((file, row, keys))
                else:  # it was not wanted when through.settle looked, and would get another gfid
                    errors.append([file.item.gfid.hex(), "busy", _CHANGED])
        agent.announce([], [[row.gfid.hex(), file.ino] for file, row, _ in ready])
        placed: List[Key] = []
        done = 0
        there = place_ahead(agent, ready)
        for file, row, keys in ready:
            faults.point("place")
            try:
                if row.id not in there:
                    place_one(agent, file, row, keys)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                errors.append([row.gfid.hex(), code_of(error), "cannot place it: {}".format(error.strerror)])
                continue
            record(agent, row, file)
            placed += keys
            done += 1
        agent.namespace.shadows.forget(placed)
        index.save(rows.values(), [], [])
        index.reset_digests({key[0] for key in placed})
    return done


def record(agent: Agent, row: Row, file: Staged) -> None:
    item = file.item
    row.mode, row.uid, row.gid = item.mode, item.uid, item.gid
    row.size, row.mtime, row.atime = item.size, item.mtime, item.atime
    row.ino = file.ino
    row.took(item.ticket)
    row.pino, row.pctime = item.ino, item.ctime
    row.gen = agent.index.meta["gen"]
    row.changed = True


def place_ahead(agent: Agent, ready: List[Tuple[Staged, Row, List[Key]]]) -> Set[int]:
    """Of a volume: new files, each by its one name if that is free, many at a time. Which it were, by the ids of their rows."""
    there: Set[int] = set()
    plain = [(file, row.id, keys[0]) for file, row, keys in ready if len(keys) == 1 and not row.ino]
    for group in crowd.groups(plain) if agent.gfids is not None else ():
        with ExitStack() as opened:
            # Of our own: one of the tree's may be closed, and its number another directory's, before all of them are open.
            fds: Dict[int, int] = {}
            for _, _, (parent, _) in group:
                if parent not in fds:
                    fds[parent] = os.dup(agent.tree.changing(parent))
                    opened.callback(os.close, fds[parent])
            places = [(file, fds[key[0]], key[1]) for file, _, key in group]
            done = crowd.each(lambda one: _link_if_free(*one), places)
        there.update(row_id for (_, row_id, _), is_there in zip(group, done) if is_there)
    return there


def _link_if_free(file: Staged, fd: int, name: bytes) -> bool:
    """Whatever is in its way is looked at by who places it alone."""
    try:
        _link(file, fd, name)
        return True
    except OSError:
        return False


def _link(file: Staged, fd: int, name: bytes) -> None:
    if file.name is None or (file.is_right and file.fd >= 0):
        link_descriptor(file.fd, fd, name)
    else:
        os.link(file.name, name, src_dir_fd=file.dir_fd, dst_dir_fd=fd, follow_symlinks=False)


def place_one(agent: Agent, file: Staged, row: Row, keys: List[Key]) -> None:
    if not keys:
        _replace(agent, file, agent.tree.limbo_fd, limbo_name(row))
        return
    for key in keys:
        fd = agent.tree.changing(key[0])
        if row.ino and agent.namespace.is_ours(row, key):
            _replace(agent, file, fd, key[1])
        else:
            _put(agent, file, fd, key)


def _put(agent: Agent, file: Staged, fd: int, key: Key) -> None:
    """Onto a name that should be free."""
    while True:
        try:
            _link(file, fd, key[1])
            return
        except FileExistsError:
            if os.stat(key[1], dir_fd=fd, follow_symlinks=False).st_ino == file.ino:
                return
            if agent.namespace.shadows.stands(key):
                faults.point("over")
                _replace(agent, file, fd, key[1])
                return
            agent.namespace.displacer.displace(key)


def _replace(agent: Agent, file: Staged, fd: int, name: bytes) -> None:
    """Onto a name where the old content stands, of the same file or as a shadow."""
    with suppress(FileNotFoundError):
        if os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino == file.ino:
            return  # placed by one that was killed then: a rename between links of one file would leave both
    aside = agent.next_staging_name()
    _link(file, agent.staging_fd, aside)
    os.rename(aside, name, src_dir_fd=agent.staging_fd, dst_dir_fd=fd)


def allow_many_files() -> None:
    """Directories and staged files are kept open: take what the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    if soft < want:
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))
