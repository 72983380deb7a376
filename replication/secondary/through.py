"""Content of files whose inode has to stay what it is: on a Gluster volume, where it has the primary's gfid (gfids.py).

What came was written aside, whole, and is in no hurry. A file that is not here yet is made aside with its gfid, filled, and
placed by one rename like any other. Into a file that is here its new content is copied, by this host, from what came: so a
link that breaks leaves the old content, but a reader may see some of both while it is copied, and a host that fails then
leaves it half old. The index knows of that, as of any file that is written in place.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Tuple

from replication.secondary import faults, sql
from replication.secondary.changes import Changes
from replication.secondary.gfids import alone
from replication.secondary.index import Row, signed
from replication.secondary.metadata import Item, dress_existing
from replication.secondary.namespace import limbo_name
from replication.secondary.protocol import code_of
from replication.secondary.staged import Staged

if TYPE_CHECKING:
    from replication.secondary.agent import Agent
    from replication.secondary.receiver import Errors

_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 20
_UNSYNCED = 128 << 20
_BUSY_S = 20.0  # for which another connection may write to the same file
_STEP_S = 0.05
_PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, fallocate(2)
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def settle(agent: Agent, staged: List[Staged], errors: Errors) -> Tuple[List[Staged], List[Item]]:
    """Files that are to be placed as they are, with the gfids that they must have; and those whose content is where it
    belongs by now. Outside of any transaction.
    """
    rest: List[Staged] = []
    into: List[Staged] = []
    agent.tree.begin()
    rows = agent.index.inodes(file.item.gfid for file in staged)
    for file in staged:
        row = rows.get(file.item.gfid)
        if row is None or not row.is_file or not row.takes(file.item.ticket) or file.is_right:
            rest.append(file)
            continue
        try:
            is_here = _is_here(agent, row) or not _make_right(agent, file)
            (into if is_here else rest).append(file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            errors.append(
                [file.item.gfid.hex(), code_of(error), "cannot place it: {}".format(error.strerror)]
            )
    return rest, _copy_into(agent, into, errors)


def new_file(agent: Agent, gfid: bytes, mode: int) -> Optional[Tuple[int, bytes]]:
    """An empty file aside that has the gfid, where no object seems to have it: its descriptor and name.

    None when one has it all the same. Raises OSError.
    """
    assert agent.gfids is not None
    name = agent.next_staging_name()
    try:
        agent.gfids.make(agent.staging_fd, name, gfid, mode)
    except OSError:
        if agent.gfids.find(gfid) is None:
            raise
        return None
    return _open_aside(agent, name), name


def _open_aside(agent: Agent, name: bytes) -> int:
    """What was just put aside, for writing. Raises OSError; then it is not there any more."""
    try:
        return os.open(name, os.O_RDWR | _FILE, dir_fd=agent.staging_fd)
    except OSError:
        _remove_aside(agent, name)
        raise


def _remove_aside(agent: Agent, name: bytes) -> None:
    """As long as an object is aside nobody gets its gfid, and its own agent does not either."""
    with suppress(OSError):
        os.unlink(name, dir_fd=agent.staging_fd)


def make_under_way(agent: Agent, gfid: bytes, name: bytes) -> None:
    """A large file that comes in pieces, as the object that it is to be; none is made where one has its gfid. Raises OSError."""
    assert agent.gfids is not None
    with alone(agent.tree.staging_fd):
        if agent.gfids.find(gfid) is None:
            try:
                agent.gfids.make(agent.tree.staging_fd, name, gfid, stat.S_IFREG | 0o600)
            except OSError:
                if agent.gfids.find(gfid) is None:
                    raise


def open_object(agent: Agent, row: Row) -> Optional[int]:
    """The file that is here, for writing; None when there is none. Raises OSError."""
    if not row.ino:
        return None
    places = [(agent.tree.fd(parent), name) for parent, name in agent.index.names_of(row.id)]
    for dir_fd, name in [*places, (agent.tree.limbo_fd, limbo_name(row))]:
        try:
            fd = os.open(name, os.O_RDWR | _FILE, dir_fd=dir_fd)
        except (FileNotFoundError, OSError) as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO):
                continue
            raise
        if os.fstat(fd).st_ino == row.ino:
            return fd
        os.close(fd)
    return None


def _is_here(agent: Agent, row: Row) -> bool:
    fd = open_object(agent, row)
    if fd is not None:
        os.close(fd)
    return fd is not None


def _make_right(agent: Agent, file: Staged) -> bool:
    """Have what came be in an object of its gfid, aside: a new one, or the one that somebody moved away.

    False: a twin has placed it meanwhile. Raises OSError.
    """
    assert agent.gfids is not None
    item = file.item
    with alone(agent.tree.staging_fd):
        made = None if agent.gfids.find(item.gfid) else new_file(agent, item.gfid, 0o100600)
    made = made or _fetch_astray(agent, item.gfid)
    if made is None:
        return False
    fd, name = made
    try:
        source = _source(file)
        try:
            replace_content(source, fd, agent.says_alive)
        finally:
            os.close(source)
        dress_existing(
            b"/proc/self/fd/%d" % fd, os.fstat(fd), item, agent.powers, item.xattrs or {}, times=True
        )
    except BaseException:
        os.close(fd)
        _remove_aside(agent, name)
        raise
    file.close()
    file.fd, file.ino, file.dir_fd, file.name, file.is_right = (
        fd,
        os.fstat(fd).st_ino,
        agent.staging_fd,
        name,
        True,
    )
    return True


def _fetch_astray(agent: Agent, gfid: bytes) -> Optional[Tuple[int, bytes]]:
    """Put an object aside that is not where it belongs; None: it is there. Raises OSError.

    While nobody else changes names: a twin may just have given it the ones that we would take from it.
    """
    assert agent.gfids is not None
    with agent.transaction():
        row = agent.index.inode(gfid)
        if row is None:
            raise FileNotFoundError(errno.ENOENT, "no name for it here any more")
        if _is_here(agent, row):
            return None
        name = agent.next_staging_name()
        agent.gfids.fetch(gfid, agent.staging_fd, name)
    return _open_aside(agent, name), name


def _source(file: Staged) -> int:
    """Another descriptor of what came."""
    if file.fd >= 0:
        return os.dup(file.fd)
    assert file.name is not None
    return os.open(file.name, os.O_RDONLY | _FILE, dir_fd=file.dir_fd)


def _copy_into(agent: Agent, files: List[Staged], errors: Errors) -> List[Item]:
    if not files:
        return []
    done: List[Item] = []
    with ExitStack() as locks:
        files = [file for file in files if _lock(agent, file.item.gfid, locks, errors)]
        with agent.transaction():  # durable no later than what is written
            rows = agent.index.inodes(file.item.gfid for file in files)
            # A twin may have been first.
            wanted: Dict[bytes, Row] = {
                file.item.gfid: row
                for file in files
                for row in (rows.get(file.item.gfid),)
                if row is not None and row.takes(file.item.ticket)
            }
            agent.index.db.execute(sql.FORGET_WHOLE)
            agent.index.db.executemany(
                sql.SAVE_IN_PLACE, [(row.id, signed(row.ino)) for row in wanted.values() if row.ino]
            )
        for file in files:
            row = wanted.get(file.item.gfid)
            if row is None:
                continue
            faults.point("into")
            try:
                if _copy_one(agent, file, row):
                    done.append(file.item)
                else:
                    errors.append([row.gfid.hex(), "not-found", "not here (any more)"])
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                errors.append(
                    [row.gfid.hex(), code_of(error), "cannot write to it: {}".format(error.strerror)]
                )
        faults.point("copied")
        from replication.secondary.inplace import written_through

        written_through(agent, done, errors)
    return done


def change(agent: Agent, item: Item, changes: Changes, errors: Errors) -> int:
    """Write what is to change of a file that is here into it. Returns how many it were."""
    if agent.index.inode(item.gfid) is None:
        errors.append([item.gfid.hex(), "not-found", "no name for it here any more"])
        return 0
    file = Staged(item, -1, 0, agent.tree.staging_fd, None)
    file.changes = changes
    return len(_copy_into(agent, [file], errors))


def _lock(agent: Agent, gfid: bytes, locks: ExitStack, errors: Errors) -> bool:
    """Nobody else writes to the file meanwhile; not a unit that is written in place either (inplace.py)."""
    name = b"lock.file." + gfid.hex().encode()
    until = time.monotonic() + _BUSY_S
    staging_fd = agent.tree.staging_fd
    while True:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=staging_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(name, dir_fd=staging_fd).st_ino == os.fstat(fd).st_ino:
                locks.callback(_unlock, staging_fd, name, fd)
                return True
        except FileNotFoundError:
            pass  # the one who had it has just removed it
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(fd)
                errors.append([gfid.hex(), "busy", "another connection is writing to it"])
                return False
            agent.says_alive()
            time.sleep(_STEP_S)
        os.close(fd)


def _unlock(staging_fd: int, name: bytes, fd: int) -> None:
    try:
        os.unlink(name, dir_fd=staging_fd)
    except FileNotFoundError:
        pass
    os.close(fd)


def _copy_one(agent: Agent, file: Staged, row: Row) -> bool:
    """False: the file was taken away meanwhile, or is not any more what changes are for."""
    target = open_object(agent, row)
    if target is None:
        return False
    try:
        if file.changes is not None:
            if not file.changes.fit(target, row.got):
                return False
            file.changes.write_into(target, file.item.size, agent.goes_on)
            return True
        source = _source(file)
        try:
            replace_content(source, target, agent.goes_on)
        finally:
            os.close(source)
    finally:
        os.close(target)
    return True


def replace_content(source: int, target: int, says_alive: Callable[[], None]) -> None:
    """Have a file hold what another one does, holes and all, and be on disk. Raises OSError, and what ``says_alive`` does."""
    size = os.fstat(source).st_size
    at = synced = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            begin = size
        _clear(target, at, begin)
        end = os.lseek(source, begin, os.SEEK_HOLE) if begin < size else size
        at = begin
        while at < end:
            piece = os.pread(source, min(_PIECE, end - at), at)
            if not piece:
                raise OSError(errno.EIO, "what came has become shorter")
            view = memoryview(piece)
            while view:
                says_alive()
                written = os.pwrite(target, view, at)
                view = view[written:]
                at += written
            if at - synced > _UNSYNCED:
                os.fsync(target)  # or the last one would take as long as all before
                synced = at
    os.ftruncate(target, size)
    os.fsync(target)


def _clear(fd: int, begin: int, end: int) -> None:
    """A hole, or zeros where there can be none."""
    end = min(end, os.fstat(fd).st_size)  # beyond that it is one anyway
    if begin >= end or _fallocate(fd, _PUNCH, begin, end - begin) == 0:
        return
    while begin < end:
        begin += os.pwrite(fd, bytes(min(_PIECE, end - begin)), begin)
