"""What a delta starts from: the version that is here, or that and what an interrupted rsync had of the new one.

rsync keeps what it had in ``.seamark/staging/partial/<gfid>``: the beginning of the new version. With the rest of
the present version behind it, it becomes ``partial/<gfid>.basis`` and is the basis of the next try, so that neither
what arrived nor what stayed the same travels again. Whatever a basis holds, rsync verifies the whole that it makes of it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple

from replication.secondary.agent import Agent
from replication.secondary.index import Key, Row
from replication.secondary.namespace import limbo_name
from replication.secondary.protocol import AgentError
from replication.secondary.syscalls import free_bytes, list_directory

PARTIAL = b"partial"
_SUFFIX = b".basis"
_OF_RSYNC = re.compile(rb"\.[0-9a-f]{32}\.[^.]+$")
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STEP = 1 << 30  # bytes copied for one request: whoever waits longer for an answer takes us for dead


@contextmanager
def partials(staging_fd: int) -> Iterator[Optional[int]]:
    """A descriptor of the directory of what was interrupted; None while there is none."""
    try:
        fd = os.open(PARTIAL, _DIR, dir_fd=staging_fd)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def salvage(staging_fd: int, unit: bytes) -> None:
    """Keep what an rsync had that was killed itself, and could not: ``.<gfid>.XXXXXX`` in the unit's ``new``."""
    try:
        new_fd = os.open(unit + b"/new", _DIR, dir_fd=staging_fd)
    except OSError:
        return
    try:
        names = [name for name in list_directory(new_fd) if _OF_RSYNC.match(name)]
        if names and PARTIAL not in list_directory(staging_fd):
            os.mkdir(PARTIAL, 0o700, dir_fd=staging_fd)
        with partials(staging_fd) as partial_fd:
            if partial_fd is None:
                return
            for name in names:
                if _size(new_fd, name) > _size(partial_fd, name[1:33]):
                    os.rename(name, name[1:33], src_dir_fd=new_fd, dst_dir_fd=partial_fd)
    except OSError:
        pass  # it is sent again
    finally:
        os.close(new_fd)


def _size(dir_fd: int, name: bytes) -> int:
    """Of a regular file; 0 when there is none."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def provide(agent: Agent, row: Row, keys: List[Key], basis_fd: int) -> None:
    """Link the basis of a file into its unit, if it has one.

    Raises AgentError("busy") while one is being put together: ask again.
    """
    name = limbo_name(row)
    with partials(agent.tree.staging_fd) as partial_fd:
        if partial_fd is not None:
            if _size(partial_fd, name):
                _put_together(agent, row, keys, partial_fd)
            if _size(partial_fd, name + _SUFFIX):
                os.link(name + _SUFFIX, name, src_dir_fd=partial_fd, dst_dir_fd=basis_fd)
                return
    link_present(agent, row, keys, basis_fd)


def link_present(agent: Agent, row: Row, keys: List[Key], fd: int) -> bool:
    """Link the version that is here into a directory, under its gfid. False when there is none."""
    if not row.ino:
        return False
    source_fd, source = _present(agent, row, keys)
    name = limbo_name(row)
    try:
        os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    if os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino != row.ino:
        os.unlink(name, dir_fd=fd)
        return False
    return True


def forget(agent: Agent, gfid: bytes) -> None:
    """Nothing of an interrupted transfer is wanted any more: the file is here."""
    with partials(agent.tree.staging_fd) as partial_fd:
        if partial_fd is not None:
            _unlink(partial_fd, gfid.hex().encode())
            _unlink(partial_fd, gfid.hex().encode() + _SUFFIX)


def _unlink(dir_fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def _present(agent: Agent, row: Row, keys: List[Key]) -> Tuple[int, bytes]:
    if keys:
        return agent.tree.fd(keys[0][0]), keys[0][1]
    return agent.tree.limbo_fd, limbo_name(row)


def _put_together(agent: Agent, row: Row, keys: List[Key], partial_fd: int) -> None:
    """What arrived, and behind it the rest of what it was a delta to."""
    name = limbo_name(row)
    whole = _open(name + _SUFFIX, partial_fd)
    if whole is None and row.ino:
        source_fd, source = _present(agent, row, keys)
        whole = _open(source, source_fd)
    try:
        if whole is not None:
            part = os.open(name, os.O_RDWR | _FILE, dir_fd=partial_fd)
            try:
                _append_rest(agent, part, whole)
            finally:
                os.close(part)
        os.rename(name, name + _SUFFIX, src_dir_fd=partial_fd, dst_dir_fd=partial_fd)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # No room for both: the rest is sent again.
        os.truncate(b"/proc/self/fd/%d/%s" % (partial_fd, name), 0)
    finally:
        if whole is not None:
            os.close(whole)


def _open(name: bytes, dir_fd: int) -> Optional[int]:
    try:
        fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=dir_fd)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _append_rest(agent: Agent, part: int, whole: int) -> None:
    """Lengthen ``part`` by what ``whole`` has beyond it, holes as holes. Raises OSError, AgentError("busy")."""
    offset, end = os.fstat(part).st_size, os.fstat(whole).st_size
    if free_bytes(agent.tree.staging_fd) < 2 * end - min(offset, end):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    stop = min(end, offset + _STEP)
    copy_data(whole, part, offset, stop)
    if os.fstat(part).st_size < stop:
        os.ftruncate(part, stop)
    if stop < end:
        raise AgentError("busy", "the basis of a delta is being put together")


def copy_data(source: int, target: int, offset: int, end: int) -> None:
    """Copy what is no hole between two offsets to the same place in another file. Raises OSError."""
    while offset < end:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole up to the end
        if start >= end:
            return
        offset = min(os.lseek(source, start, os.SEEK_HOLE), end)
        _copy_range(source, target, start, offset)


def _copy_range(source: int, target: int, start: int, stop: int) -> None:
    """Copy bytes from one file to the same place in another; shared where the file system can. Source: copy_file_range(2)."""
    while start < stop:
        try:
            done = os.copy_file_range(source, target, stop - start, start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.pwrite(target, os.pread(source, min(stop - start, 1 << 20), start), start)
        if not done:
            return
        start += done
