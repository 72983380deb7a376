"""Objects of a root on a Gluster volume are made with the gfids that they have on the primary.

The client's mount (mounting.py) takes orders to make an object of a given gfid, as an extended attribute of the directory,
and finds any object of the volume as ``.gfid/<its gfid>``. Source: xlators/features/gfid-access of GlusterFS.

A gfid belongs to one object of the whole volume, which keeps it as long as it lives. Bricks do not notice when another one
is made with it on a different brick, so we look first. Where one is there already that should not be (somebody moved it,
or it was displaced with an old index) it is fetched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import time
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Dict, Iterator, List, Optional, Set
from uuid import UUID

from replication.secondary import layout
from replication.secondary.index import Row
from replication.secondary.mounting import GFID, Place, is_one_brick, states, subvolumes
from replication.secondary.syscalls import rename_new

_NEW = "glusterfs.gfid.newfile"
_PATH_OF_DIRECTORY = "glusterfs.ancestry.path"
_PATHS_OF_FILE = "glusterfs.gfidtopath"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATHINFO = "trusted.glusterfs.pathinfo"
_NAMES = 50  # for each set of bricks, tried until one is on each
_JOURNAL_S = 45.0  # file systems write their journals by themselves: XFS every 30 s
_SET = re.compile(rb"<(?!DISTRIBUTE:)([^>]*)>")
_BRICK = re.compile(rb"POSIX\((.*)\):([^:]*):")
_JOINED = 64  # paths of several pieces that are tried
_STAGING = b"/".join((layout.HIDDEN, layout.STAGING, b""))
_AGENTS = _STAGING + b"agent."
_AT_IT = "another worker is at this file; it is tried again"
_RESERVED = 16  # the first are Gluster's own: of the root, of the trash


def gfid_at(dir_fd: int, name: bytes) -> bytes:
    """Of what stands at a name. Raises OSError."""
    return os.getxattr(b"/proc/self/fd/%d/%s" % (dir_fd, name), GFID, follow_symlinks=False)


def set_of_bricks(pathinfo: bytes) -> bytes:
    """Which set an object is on, by trusted.glusterfs.pathinfo. A replica's bricks are in it in the order of their answers.

    Raises OSError when it does not say so.
    """
    found = _SET.search(pathinfo)
    if found is None:
        raise OSError(errno.EIO, "where a file lies is not said: {!r}".format(pathinfo))
    brick = _BRICK.match(found[1])
    return b"%s:%s" % (brick[2], brick[1]) if brick is not None else found[1]


@contextmanager
def alone(staging_fd: int) -> Iterator[None]:
    """No other agent of this root looks for gfids and makes objects of them meanwhile: bricks would take one each. Raises OSError."""
    fd = os.open(b".", _DIR, dir_fd=staging_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _text(gfid: bytes) -> bytes:
    return str(UUID(bytes=gfid)).encode()


def _refuse_of_the_living(path: bytes, dir_fd: int, locks: ExitStack) -> None:
    """Raises BlockingIOError for what an agent has aside, or is receiving in pieces, and may be writing to."""
    if path.startswith(_STAGING):
        if not path.startswith(_AGENTS):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            dir_fd = os.open(path.rpartition(b"/")[2], flags, dir_fd=dir_fd)
            locks.callback(os.close, dir_fd)
        try:
            fcntl.flock(dir_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, _AT_IT) from None


class Gfids:
    """The gfids of one volume, for a root on it."""

    def __init__(self, place: Place, root_fd: int) -> None:
        self._place = place
        self._root_fd = root_fd
        self._sync_fd, self._sync_place, self._times = -1, (-1, b""), 0
        self._on_each: List[bytes] = []
        self._wanted = 0
        self._reached: Set[bytes] = set()
        self._by_gfid_fd = os.open(place.mount + b"/.gfid", os.O_PATH | os.O_CLOEXEC)

    def find(self, gfid: bytes) -> Optional[os.stat_result]:
        """The object of the volume that has it; None when there is none. Raises OSError."""
        found = self.seen(gfid)
        if found is None:
            self.refuse_if_away()
        return found

    def refuses_twins(self) -> bool:
        """Whether no second object can be made of a gfid: there is one brick, which says so by itself. Raises OSError."""
        return is_one_brick(self._place)

    @contextmanager
    def making(self, staging_fd: int) -> Iterator[bool]:
        """Objects are made meanwhile. Yields whether each gfid has to be looked for just before; then nobody else makes any. Raises OSError."""
        if self.refuses_twins():
            yield False
            return
        with alone(staging_fd):
            yield True

    def seen(self, gfid: bytes) -> Optional[os.stat_result]:
        """The same as find(), of those bricks that are there."""
        try:
            return os.stat(_text(gfid), dir_fd=self._by_gfid_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        return None

    def refuse_if_away(self) -> None:
        """Raises OSError where what was not seen may be there."""
        if not all(states(self._place)):
            # It may be there: bricks would take another object of the same gfid.
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def make(
        self, dir_fd: int, name: bytes, gfid: bytes, mode: int, rdev: int = 0, target: bytes = b""
    ) -> None:
        """A new object: owned by us, not in use yet. Raises FileExistsError where the name is taken, OSError."""
        if int.from_bytes(gfid, "big") < _RESERVED:
            raise OSError(errno.EINVAL, "no gfid of an object", name)
        head = struct.pack("!II37sI", 0, 0, _text(gfid), mode) + name + b"\0"
        if stat.S_ISLNK(mode):
            blob = head + target + b"\0"
        elif stat.S_ISDIR(mode):
            blob = head + struct.pack("!II", stat.S_IMODE(mode), 0)
        else:
            blob = head + struct.pack("!III", stat.S_IMODE(mode), rdev, 0)
        os.setxattr(dir_fd, _NEW, blob)

    def provide(self, row: Row, dir_fd: int, name: bytes, target: str) -> None:
        """Have an object of a row's gfid stand at a name: a new one, or the one that there is, of which a file is emptied.

        What can only be made anew (the number of a device, the target of a symlink) is, where it is not right.

        Raises FileExistsError where the name is taken by another object, PermissionError where the gfid is.
        """
        found = self.find(row.gfid)
        if found is not None and not self._is_right(found, row, os.fsencode(target)):
            self.drop(row.gfid, b"")
            found = self.find(row.gfid)
        if found is None:
            private = stat.S_IFMT(row.mode) | (0o700 if row.is_dir else row.mode & 0o700)
            self.make(dir_fd, name, row.gfid, private, row.rdev, os.fsencode(target))
            return
        try:
            if gfid_at(dir_fd, name) != row.gfid:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        except FileNotFoundError:
            self.fetch(row.gfid, dir_fd, name)
        if row.is_file:
            os.close(os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd))

    def _is_right(self, found: os.stat_result, row: Row, target: bytes) -> bool:
        kind = stat.S_IFMT(row.mode)
        if kind != stat.S_IFMT(found.st_mode):
            return False
        if kind == stat.S_IFLNK:
            return os.readlink(self._path(row.gfid)) == target
        return kind not in (stat.S_IFCHR, stat.S_IFBLK) or found.st_rdev == row.rdev

    def is_within(self, gfid: bytes) -> bool:
        """Whether the object that has it stands below our root."""
        for path in self._paths(gfid):
            parent, _, last = path.rpartition(b"/")
            try:
                fd = self._open_beneath(parent)
                try:
                    if gfid_at(fd, last) == gfid:
                        return True
                finally:
                    os.close(fd)
            except OSError:
                continue  # only meant by this path, or not there any more
        return False

    def fetch(self, gfid: bytes, dir_fd: int, name: bytes) -> None:
        """Move the object that has it to a name that must be free. Raises FileExistsError, OSError.

        BlockingIOError where another agent is making it.
        PermissionError where it is not below our root: whose it is then is not known.
        """
        # What was displaced comes back rather than a name that may be right.
        for path in sorted(self._paths(gfid), key=lambda path: not path.startswith(layout.HIDDEN + b"/")):
            parent, _, last = path.rpartition(b"/")
            try:
                fd = self._open_beneath(parent)
            except OSError:
                continue
            with ExitStack() as locks:
                locks.callback(os.close, fd)
                try:
                    if gfid_at(fd, last) == gfid:
                        _refuse_of_the_living(path, fd, locks)
                        rename_new(fd, last, dir_fd, name)
                        return
                except (FileExistsError, BlockingIOError):
                    raise
                except OSError:
                    continue  # it was there, or is only meant by this path
        words = "its gfid {} is that of another object of the volume".format(UUID(bytes=gfid))
        raise PermissionError(errno.EPERM, words, name)

    def flush(self, dir_fd: int) -> None:
        """Have every brick write what was done to names and attributes. Content was synced when it was written. Raises OSError.

        A client's syncfs(2) reaches no brick; but a brick's file system writes its journal, in order, when any file on it is
        synced. So we keep a file on each, below ``dir_fd``. Where it lies is asked each time: bricks are added, and files move.
        """
        self._reach(dir_fd)
        if len(self._reached) < self._wanted:
            time.sleep(_JOURNAL_S)

    def _reach(self, dir_fd: int) -> None:
        reached = {self._sync_file(name) for name in self._on_each}
        if not reached or (subvolumes(self._place), reached) != (self._wanted, self._reached):
            self._reach_all(dir_fd)

    def _reach_all(self, dir_fd: int) -> None:
        """Have files on all sets of bricks, synced now. By its name a file is put on one of them, of those that take new ones."""
        self._remove_sync_files()
        name = b"sync.%d" % self._times
        self._times += 1
        os.mkdir(name, 0o700, dir_fd=dir_fd)  # anew: older ones put nothing on bricks that were added
        self._sync_fd = os.open(name, _DIR, dir_fd=dir_fd)
        self._sync_place = (dir_fd, name)
        found: Dict[bytes, bytes] = {}
        self._wanted = subvolumes(self._place)
        for number in range(_NAMES * self._wanted):
            name = b"%d" % number
            if found.setdefault(self._sync_file(name), name) != name:
                os.unlink(name, dir_fd=self._sync_fd)
            if len(found) >= self._wanted:
                break
        self._on_each, self._reached = list(found.values()), set(found)

    def _sync_file(self, name: bytes) -> bytes:
        """Which set of bricks it lies on. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._sync_fd)
        try:
            os.write(fd, b".")
            os.fsync(fd)
            return set_of_bricks(os.getxattr(b"/proc/self/fd/%d/%s" % (self._sync_fd, name), _PATHINFO))
        finally:
            os.close(fd)

    def close(self, dir_fd: int) -> None:
        """The last that is done: flush as far as that takes no time, and leave nothing behind."""
        try:
            self._reach(dir_fd)
            self._remove_sync_files()
        except OSError:
            pass
        os.close(self._by_gfid_fd)

    def _remove_sync_files(self) -> None:
        if self._sync_fd >= 0:
            for name in self._on_each:
                os.unlink(name, dir_fd=self._sync_fd)
            os.close(self._sync_fd)
            self._sync_fd, self._on_each = -1, []
            os.rmdir(self._sync_place[1], dir_fd=self._sync_place[0])

    def drop(self, gfid: bytes, below: bytes) -> None:
        """Remove those names of a file that begin like this. Raises OSError."""
        for path in self._paths(gfid):
            if path.startswith(below):
                parent, _, last = path.rpartition(b"/")
                fd = self._open_beneath(parent)
                try:
                    if gfid_at(fd, last) == gfid:
                        os.unlink(last, dir_fd=fd)
                finally:
                    os.close(fd)

    def _path(self, gfid: bytes) -> bytes:
        return b"/proc/self/fd/%d/%s" % (self._by_gfid_fd, _text(gfid))

    def _paths(self, gfid: bytes) -> List[bytes]:
        """Where it may be, from our root."""
        text = self._attribute(gfid, _PATH_OF_DIRECTORY)
        if text is None:
            text = self._attribute(gfid, _PATHS_OF_FILE) or b""
            pieces = text.lstrip(b"/").split(b":/")
            # Names may hold colons too: a path may be several pieces.
            whole = range(1, len(pieces) + 1)
            joined = (b":/".join(pieces[a : a + n]) for n in whole for a in range(len(pieces) - n + 1))
            found = list(islice(joined, len(pieces) + _JOINED))
        else:
            found = [text.strip(b"/")]
        if not self._place.below:
            return found
        above = self._place.below + b"/"
        return [path[len(above) :] for path in found if path.startswith(above)]

    def _attribute(self, gfid: bytes, name: str) -> Optional[bytes]:
        try:
            return os.getxattr(self._path(gfid), name, follow_symlinks=False).rstrip(b"\0")
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.ENOENT, errno.ESTALE):
                return None
            raise

    def _open_beneath(self, path: bytes) -> int:
        fd = os.dup(self._root_fd)
        for part in filter(None, path.split(b"/")):
            try:
                below = os.open(part, _DIR, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd
