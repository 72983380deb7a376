"""Large files in pieces that resume."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from hashlib import blake2b
from typing import Any, Callable, Dict, List, Optional

from replication.secondary import through
from replication.secondary.agent import Agent
from replication.secondary.changes import Changes
from replication.secondary.content_only import undress
from replication.secondary.gfids import gfid_at
from replication.secondary.index import Row
from replication.secondary.leftovers import still_called, sweep_unwanted
from replication.secondary.metadata import Item, dress_existing
from replication.secondary.observed import gfid_of
from replication.secondary.protocol import AgentError, code_of, unpacked
from replication.secondary.receiver import place
from replication.secondary.staged import Staged
from replication.secondary.syscalls import list_directory, rename_new, spare_bytes
from replication.secondary.tree import LostDirectory

_READ = 1 << 20
_PLENTY, _PLENTY_S = 1 << 30, 1.0  # bytes of room
BLOCK = 128 << 10  # bytes, of a delta
_DELTA, _CHANGES = "delta", b"blocks"  # "changes" is what older versions have left, and goes
_VERSION_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz-_")


class Transfer:
    """A file under way: ``.seamark/staging/<gfid>.<version>``, locked by this process."""

    __slots__ = ("_asked_s", "_live", "_room", "changes", "fd", "name", "size", "was_lost")

    def __init__(
        self, fd: int, name: bytes, size: int, live: Optional[int], got: int, says_alive: Callable[[], None]
    ) -> None:
        """``live``: the file that it is to change, which keeps its inode, and is closed with it; ``got``: see Changes."""
        self.fd = fd
        self.name = name
        self.size = size
        self._live = live
        self.changes = Changes(fd, live, got, BLOCK, says_alive) if live is not None else None
        self.was_lost = False  # the directory that it was to be placed in
        self._room, self._asked_s = 0, 0.0

    def close(self) -> None:
        for fd in (self.fd, self._live):
            if fd is not None:
                os.close(fd)

    def make_sure_of_room(self, amount: int) -> None:
        """For so many bytes. The file system is asked each time, unless there was plenty just now. Raises OSError.

        The last of the room is left to the index, to removals, and to small files. What arrived is kept, so a file
        that does not fit is not sent over and over; with all of the room taken nothing could make any.
        """
        self._room -= amount
        now = time.monotonic()
        if self._room < _PLENTY or now - self._asked_s > _PLENTY_S:
            self._room, self._asked_s = spare_bytes(self.fd) - amount, now
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def file_begin(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Begin, or resume: ``offset`` is where an earlier transfer of the same version stopped."""
    gfid = gfid_of(request["gfid"])
    version = str(request["version"])
    if not version or len(version) > 100 or not set(version) <= _VERSION_CHARACTERS:
        raise AgentError("protocol", "not a version: {!r}".format(version))
    row = agent.index.inode(gfid)
    if row is None:
        raise AgentError("not-found", "no name for it here any more")
    _drop(agent, gfid)
    sweep_unwanted(agent)
    live: Optional[int] = None
    if agent.gfids is not None and version == _DELTA:
        agent.tree.begin()
        live = through.open_object(agent, row)
    try:
        return _begin(
            agent, row, gfid, version.encode() if live is None else _CHANGES, int(request["size"]), live
        )
    except BaseException:
        if live is not None and gfid not in agent.transfers:
            os.close(live)
        raise


def _begin(
    agent: Agent, row: Row, gfid: bytes, version: bytes, size: int, live: Optional[int]
) -> Dict[str, Any]:
    name = gfid.hex().encode() + b"." + version
    _remove_other_versions(agent, gfid, name)
    fd = _open_locked(agent, row, name)
    try:
        offset = os.fstat(fd).st_size if live is None else 0
        if offset > size:
            os.ftruncate(fd, 0)
            offset = 0
        agent.transfers[gfid] = Transfer(fd, name, size, live, row.got, agent.says_alive)
    except BaseException:
        os.close(fd)
        raise
    return {"offset": offset}


def _open_locked(agent: Agent, row: Row, name: bytes) -> int:
    """A file under way, made if it is not there. Raises AgentError("busy"), OSError."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            fd = os.open(name, flags, dir_fd=agent.tree.staging_fd)
        except FileNotFoundError:
            if agent.gfids is not None and not row.ino:
                through.make_under_way(agent, row.gfid, name)
            fd = os.open(name, flags | os.O_CREAT, 0o600, dir_fd=agent.tree.staging_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if still_called(fd, agent.tree.staging_fd, name):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise AgentError("busy", "another connection is sending this file") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # by now it may be the file itself


def _remove_other_versions(agent: Agent, gfid: bytes, keep: bytes) -> None:
    """Raises AgentError("busy") where one is on its way: of a file that changes all the time none would ever be whole."""
    prefix = gfid.hex().encode() + b"."
    if agent.busy_with.startswith(prefix) and agent.busy_with != keep:
        _remove_version(agent, agent.busy_with, keep)  # who asks again and again is told so by this alone
    for name in list_directory(agent.tree.staging_fd):
        if name.startswith(prefix) and name != keep:
            _remove_version(agent, name, keep)


def _remove_version(agent: Agent, name: bytes, keep: bytes) -> None:
    staging_fd = agent.tree.staging_fd
    try:
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging_fd)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if still_called(fd, staging_fd, name) and not _is_begun_anew(agent, fd, name, keep):
            os.unlink(name, dir_fd=staging_fd)
    except BlockingIOError:
        agent.busy_with = name
        raise AgentError("busy", "another connection is sending this file") from None
    except OSError:
        pass
    finally:
        os.close(fd)


def _is_begun_anew(agent: Agent, fd: int, name: bytes, keep: bytes) -> bool:
    """What was made as the object that it is to be goes on as it, empty, for the version that comes. Raises OSError.

    Were it removed while it is open somewhere, and made again on another brick, Gluster would take the one that was removed for its own
    pointer to the other, and show it at names that belong to its brick (posix_create_link_if_gfid_exists of storage/posix).
    """
    staging_fd = agent.tree.staging_fd
    if agent.gfids is None or keep.endswith(b"." + _CHANGES) or os.fstat(fd).st_nlink > 1:
        return False
    if gfid_at(staging_fd, name).hex().encode() != name[:32]:
        return False
    os.ftruncate(fd, 0)
    try:
        rename_new(staging_fd, name, staging_fd, keep)
    except FileExistsError:
        return False
    return True


def _drop(agent: Agent, gfid: bytes) -> None:
    transfer = agent.transfers.pop(gfid, None)
    if transfer is not None:
        transfer.close()


def abandon(agent: Agent, gfid: bytes) -> None:
    """Leave nothing of a transfer of this connection: another engine sends the file."""
    transfer: Optional[Transfer] = agent.transfers.get(gfid)
    if transfer is not None:
        os.unlink(transfer.name, dir_fd=agent.tree.staging_fd)
        _drop(agent, gfid)


def file_leave(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Send it no further on this connection: what came stays, and whoever asks next goes on with it."""
    _drop(agent, gfid_of(request["gfid"]))
    return {}


def under_way(agent: Agent, gfid: bytes) -> Transfer:
    """The transfer that was begun. Raises AgentError("protocol") when there is none."""
    transfer: Optional[Transfer] = agent.transfers.get(gfid)
    if transfer is None:
        raise AgentError("protocol", "file_begin comes first")
    return transfer


def file_data(agent: Agent, request: Dict[str, Any], payload: bytes) -> Dict[str, Any]:
    """A piece. What is never written stays a hole."""
    gfid = gfid_of(request["gfid"])
    transfer = under_way(agent, gfid)
    content = unpacked(request, payload)
    offset = int(request["offset"])
    if offset < 0 or offset + len(content) > transfer.size:
        raise AgentError("protocol", "a piece beyond the end of its file")
    try:
        transfer.make_sure_of_room(len(content))
        if transfer.changes is not None:
            if len(content) > BLOCK or offset % BLOCK:
                raise AgentError("protocol", "a piece of a delta is a block")
            transfer.changes.put(offset, content)
            return {}
        while content:
            written = os.pwrite(transfer.fd, content, offset)
            content = content[written:]
            offset += written
    except OSError:
        # Pieces behind this one are on their way already, and the size says where to resume: they must not
        # be written behind a hole. They are refused, and this piece comes again.
        try:
            if transfer.changes is None:
                os.ftruncate(transfer.fd, offset)
        finally:
            _drop(agent, gfid)
        raise
    return {}


def file_end(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """All pieces came: check the digest if there is one, and place the file. Raises LostDirectory: it may be asked again."""
    item = Item(*request["item"])
    transfer = under_way(agent, gfid_of(request["gfid"]))
    if transfer.changes is not None:
        return _end_changes(agent, item, transfer, transfer.changes)
    staged = Staged(item, transfer.fd, os.fstat(transfer.fd).st_ino, agent.tree.staging_fd, transfer.name)
    stays = False
    try:
        answer = _end(agent, staged, transfer.name, request.get("digest"))
        # Its names are gone with their directory, which is listed again: then it is wanted as it came.
        stays = transfer.was_lost and [error[1] for error in answer["errors"]] == ["not-found"]
    except LostDirectory:
        transfer.was_lost = True
        _put_back(agent, transfer, staged)
        raise
    except BaseException:
        del agent.transfers[item.gfid]
        staged.close()
        raise
    if stays:
        _put_back(agent, transfer, staged)
        _drop(agent, item.gfid)
    else:
        del agent.transfers[item.gfid]
        staged.close()
    return answer


def _end(agent: Agent, staged: Staged, name: bytes, wanted: Optional[str]) -> Dict[str, Any]:
    item, fd = staged.item, staged.fd
    os.ftruncate(fd, item.size)
    if agent.gfids is not None:
        staged.is_right = gfid_at(staged.dir_fd, name) == item.gfid
    if wanted is not None and content_digest(fd) != wanted:
        words = "the content does not have the digest that was sent"
        return {"errors": [[item.gfid.hex(), "io", words]], "done": 0}
    try:
        undress(agent, [item])
        path = b"/proc/self/fd/%d" % fd
        dress_existing(path, os.fstat(fd), item, agent.powers, item.xattrs or {}, times=True)
        if staged.is_right:
            os.fsync(fd)  # a client of a volume has no syncfs(2)
    except OSError as error:
        words = "cannot finish it: {}".format(error.strerror)
        return {"errors": [[item.gfid.hex(), code_of(error), words]], "done": 0}
    errors: List[List[Any]] = []
    done = place(agent, [staged], errors)
    return {"errors": errors, "done": done, "bytes": item.size}


def _put_back(agent: Agent, transfer: Transfer, staged: Staged) -> None:
    """Have what came be as it came: whoever asks again goes on with it."""
    if transfer.fd != staged.fd:
        transfer.fd = staged.fd
        fcntl.flock(transfer.fd, fcntl.LOCK_EX)
    staged.go_back(agent.tree.staging_fd, transfer.name)
    os.fchmod(transfer.fd, 0o600)  # or we might not be allowed to open it again


def _end_changes(agent: Agent, item: Item, transfer: Transfer, changes: Changes) -> Dict[str, Any]:
    """What came stays for another try where it could not be written into its file."""
    errors: List[List[Any]] = []
    try:
        undress(agent, [item])
        done = through.change(agent, item, changes, errors)
        if not errors:
            os.unlink(transfer.name, dir_fd=agent.tree.staging_fd)
    except LostDirectory:
        raise  # it is asked again at once
    except BaseException:
        _drop(agent, item.gfid)
        raise
    _drop(agent, item.gfid)
    return {"errors": errors, "done": done, "bytes": item.size}


def content_digest(fd: int) -> str:
    """blake2b-256 of a file, from its beginning."""
    digest = blake2b(digest_size=32)
    offset = 0
    while True:
        piece = os.pread(fd, _READ, offset)
        if not piece:
            return digest.hexdigest()
        digest.update(piece)
        offset += len(piece)
