"""A Gluster volume, looked at through a mount of it. Its own gfid is the identity of an object.

Over FUSE neither file handles nor birth times say who an object is: handles are numbers of the client's memory. Every
object has its gfid as a virtual attribute, its inode number is the gfid's second half, and a mount made for it
(gluster/mount.py) finds objects by gfid.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as st
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from replication.errors import SeamarkError
from replication.gluster.bricks import TAKEN, LocalBricks
from replication.gluster.mount import GFID
from replication.gluster.single import noted
from replication.secondary.handles import inode_number
from replication.volume.directory import RESERVED, DirectoryVolume, VanishedError
from replication.volume.handle import Stat, stat_at

if TYPE_CHECKING:
    from pathlib import Path

_O_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_O_MOUNT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_AWAY = {errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ETIMEDOUT}
_NO_SUCH = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}
_PATH_OF_DIRECTORY = "glusterfs.ancestry.path"
_PATHS_OF_FILE = "glusterfs.gfidtopath"
_BY_GFID = b".gfid"  # in a mount that was made for it
_GRAPH = b".meta/graphs/active"
_LOOK_S = 0.5  # a client that lost a brick tries again after seconds
_TRIES = 3
_HIDDEN_LOOKS, _HIDDEN_S = 40, 0.05
_UNMOUNTED = "it is not mounted at the moment"
_HIDDEN = "the bricks have it, but the volume does not show it at the moment"
_KEPT_S = 0.02  # longer than the kernel keeps attributes of a mount of ours
_AT_ONCE = 8
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_NAMES_AT_ONCE = 8
_OWN_NAMES = (
    RESERVED,
    b".trashcan",
)  # the second is Gluster's, of each volume by itself, and cannot be removed


def is_own(name: bytes) -> bool:
    """Whether a name in the root is ours or Gluster's own."""
    return name in _OWN_NAMES or name.startswith(TAKEN)


def is_within_own(path: bytes) -> bool:
    """The same of what such a name, or a path that begins with one, leads to."""
    return is_own(path.partition(b"/")[0])


class VolumeAway(SeamarkError):
    """No brick of the volume answers, or its client is gone: what was to be done is done when it is back."""

    code = "primary-away"


class GlusterVolume(DirectoryVolume):
    """As DirectoryVolume. ``root`` is the mount, or a directory in it."""

    keeps_pages = True  # a mount that others made does, with the times of the new content
    # Of a file that was moved to another brick, lseek(2) says that it is one hole: it asks what was left behind.
    tells_holes = False
    hides_xattrs = True
    keeps_handles = False  # a brick makes it anew

    def __init__(self, root: bytes, identity: str = "", changelog: Path | None = None) -> None:
        """``changelog``: where is noted whether one brick is all of the volume, and could be looked at instead.

        Raises VolumeAway, VolumeError.
        """
        super().__init__(root, identity)
        self._changelog = changelog
        self._mount_fd = -1
        try:
            self._open_anew()
        except OSError as error:
            self._close()
            raise self._unopened(root, error) from None
        # What is asked of it is asked of this mount, whatever is at its path by then.
        self._mount = b"/proc/self/fd/%d" % self._mount_fd
        self._dht = b""
        self._bricks = LocalBricks(self._mount)
        self._pool: ThreadPoolExecutor | None = None  # made in the process that uses it

    @staticmethod
    def _unopened(root: bytes, error: OSError) -> SeamarkError:
        if error.errno in _AWAY:
            return VolumeAway(f"the volume at {os.fsdecode(root)}: {error.strerror}")
        return DirectoryVolume._unopened(root, error)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._close()

    def _close(self) -> None:
        super().close()
        if self._mount_fd >= 0:
            os.close(self._mount_fd)

    def each(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterable[_Result]:
        """Every look is answered by a brick, after a while."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_AT_ONCE, "looks")
        return self._pool.map(work, items)

    def is_current(self) -> bool:
        return self._changelog is None or noted(self._changelog) is None

    # ---- identity

    def identify(self, dir_fd: int, name: bytes) -> tuple[bytes, Stat]:
        """While a file moves to other bricks the volume may say, for some hundredths of a second, that there is none."""
        for _ in range(_HIDDEN_LOOKS):
            try:
                return self._identified(dir_fd, name)
            except FileNotFoundError:
                if not name or not self._moves() or not self._bricks.have(self.identify_fd(dir_fd)[0], name):
                    raise
            time.sleep(_HIDDEN_S)
        raise OSError(errno.ESTALE, _HIDDEN)

    def _target(self, dir_fd: int, name: bytes) -> bytes | None:
        """While it moves, what a client reads may be the file that only says where it will be."""
        for _ in range(_HIDDEN_LOOKS):
            target = super()._target(dir_fd, name)
            if target is not None or not self._moves():
                return target
            try:
                if not st.S_ISLNK(self.identify(dir_fd, name)[1].mode):
                    return None
            except FileNotFoundError:
                return None
            time.sleep(_HIDDEN_S)
        raise OSError(errno.ESTALE, _HIDDEN)

    def _moves(self) -> bool:
        """Whether there is more than one set of bricks, so that files may move from one to another."""
        return len(self._bricks.sets()) > 1

    def _identified(self, dir_fd: int, name: bytes) -> tuple[bytes, Stat]:
        where = b"/proc/self/fd/%d" % dir_fd + (b"/" + name if name else b"")
        for _ in range(_TRIES):
            stat = stat_at(dir_fd, name)
            gfid = os.getxattr(where, GFID, follow_symlinks=not name)
            if inode_number(int.from_bytes(gfid[8:], "big")) == stat.ino:
                break  # else it was replaced between the two, or is the root of a mount
        return gfid, stat

    def believed(self, dir_fd: int, name: bytes, stat: Stat) -> Stat:
        """Of a directory each set of bricks has its own attributes, of which one tells mode and owner. While that is away the client
        says that it is root's and nobody may do anything with it, and has times that are too old.
        """
        if st.S_ISDIR(stat.mode):
            if not st.S_IMODE(stat.mode):  # it may have been away a moment ago
                self.believe_directory()
                time.sleep(_KEPT_S)
                stat = self.identify(dir_fd, name)[1]
            self.believe_directory()
        return stat

    def believe_directory(self) -> None:
        if self._moves():
            self._need_all()

    def stat(self, dir_fd: int, name: bytes = b"") -> Stat:
        try:
            return stat_at(dir_fd, name)
        except FileNotFoundError:
            return self.identify(dir_fd, name)[1]

    def check_in_place(self) -> None:
        """The mount may have been made anew: then the new one is used. Raises VolumeAway."""
        try:
            if os.stat(self.root).st_dev != self._device():
                self._open_anew()
        except OSError as error:
            raise VolumeAway(f"the volume at {os.fsdecode(self.root)}: {error.strerror}") from None

    def check_answers(self, error: OSError) -> None:
        if error.errno not in _AWAY:
            return
        if not self._device():
            with contextlib.suppress(OSError):
                self._open_anew()
            raise VolumeAway("the client of the volume has ended, or no brick answers")
        with contextlib.suppress(OSError):
            if any(self._parts()):
                return  # a part of it is away: that concerns what is there
        raise VolumeAway("no brick of the volume answers: is it started?") from None

    def _device(self) -> int:
        """Of the mount that is in use; 0 when that does not answer."""
        try:
            return os.fstat(self.root_fd).st_dev
        except OSError:
            return 0

    def _open_anew(self) -> None:
        """Use what is mounted at the path of the root now. Raises OSError."""
        with contextlib.ExitStack() as stack:

            def opened(path: bytes, flags: int) -> int:
                fd = os.open(path, flags)
                stack.callback(os.close, fd)
                return fd

            root_fd = opened(self.root, _O_DIR)
            _need_client(root_fd)
            mount = _mount_of(self.root)
            mount_fd = opened(mount, _O_MOUNT)
            if os.fstat(mount_fd).st_dev != os.fstat(root_fd).st_dev:
                raise OSError(errno.ENOTCONN, _UNMOUNTED)  # since
            os.dup2(root_fd, self.root_fd, inheritable=False)
            if self._mount_fd < 0:
                self._mount_fd = os.dup(mount_fd)
            else:
                os.dup2(mount_fd, self._mount_fd, inheritable=False)
        self.below = self.root[len(mount) :].strip(b"/")  # of the volume's own root

    # ---- what is away

    def _parts(self) -> list[bool]:
        """Whether each subvolume of the volume is there, as the client has it. Raises OSError.

        A directory whose entries lie on several of them is listed without those of one that is away, and without an
        error.
        """
        active = os.path.join(self._mount, _GRAPH)
        if not self._dht:
            self._dht = next(name for name in sorted(os.listdir(active)) if name.endswith(b"-dht"))
        with open(os.path.join(active, self._dht, b"private"), "rb") as file:
            lines = file.read().splitlines()
        return [
            line.rpartition(b"=")[2].strip() == b"1"
            for line in lines
            if line.startswith(b"subvolume_status[")
        ]

    def _need_all(self) -> None:
        """Raises OSError where what is not seen may only be out of reach."""
        if not all(self._parts()):
            raise OSError(errno.ENOTCONN, "a part of the volume is away")

    # ---- opening

    def open_dir_by_handle(self, handle: bytes) -> tuple[int, bytes]:
        """``handle``: its gfid."""
        for _ in range(_HIDDEN_LOOKS):
            paths = self.paths_of(handle)
            if not paths:
                raise VanishedError(handle)
            with contextlib.suppress(VanishedError):
                return self.open_dir(paths[0], handle), paths[0]
            time.sleep(_HIDDEN_S)
        raise OSError(errno.ESTALE, _HIDDEN)

    def paths_of(self, gfid: bytes) -> list[bytes] | None:
        """Where an object is now, relative to the root; of a file perhaps more than there are. None: that is not known.

        Raises OSError, VolumeAway. (ENOTCONN where it is not seen, and a part of the volume is away; and for a directory that only a few bricks of its set have: until they are healed; or
        for good, where it was taken from its names in one that was.)
        """
        for _ in range(_HIDDEN_LOOKS):
            found = self._paths_of(gfid)
            shown = [path for path in found or () if not path.lstrip(b"/").startswith(TAKEN)]
            if found is None or len(shown) < len(found):
                # A brick that is healed has taken it from its names; others may have it there still.
                return [path for each in shown for path in self._in_root(each)] or None
            if not found:
                self.confirm_absence()
            if found or not self._moves() or not self._bricks.have_object(gfid):
                return [path for each in found for path in self._in_root(each)]
            time.sleep(_HIDDEN_S)
        raise OSError(errno.ESTALE, _HIDDEN)

    def _paths_of(self, gfid: bytes) -> list[bytes] | None:
        # A directory is never looked up by its gfid where that can be helped: when bricks come or go in that moment, the
        # client cannot list it any more (gfid-access takes the real one for the stand-in that it shows).
        if (path := self._bricks.directory(gfid)) is not None:
            return [path]
        where = os.path.join(self._mount, _BY_GFID, str(UUID(bytes=gfid)).encode())
        try:
            text = self._attribute(where, _PATH_OF_DIRECTORY)
            if text is not None:
                return [text]
            text = self._attribute(where, _PATHS_OF_FILE)
            paths = None if text is None else list(_possible(text))
            if paths is not None and len(paths) > 1:
                # A brick ends a shorter name with what is left of a longer one that it has read before.
                return self._bricks.links(gfid) or paths
            return paths
        except OSError as error:
            if error.errno in _NO_SUCH:
                return [] if os.path.isdir(os.path.join(self._mount, _BY_GFID)) else None
            self.check_answers(error)
            raise

    def _attribute(self, where: bytes, name: str) -> bytes | None:
        try:
            return os.getxattr(where, name, follow_symlinks=False).rstrip(b"\0")
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP):
                return None
            raise

    def _in_root(self, path: bytes) -> Iterator[bytes]:
        """Where that is from our root on; nowhere, also where it is Seamark's own: a brick tells of all that it has."""
        inside = path.strip(b"/")
        if self.below and inside != self.below and not inside.startswith(self.below + b"/"):
            return
        inside = inside[len(self.below) :].lstrip(b"/")
        if not is_within_own(inside):
            yield inside

    # ---- looking

    def confirm_absence(self) -> None:
        self._need_all()

    def names(self, dir_fd: int, *, is_root: bool) -> list[bytes]:
        """Also such as may be gone: they are looked at one by one."""
        self._need_all()
        found = set(self._listed(dir_fd))
        if self._moves():
            # What moves from one set of bricks to another may be in none of their answers (see bricks.py).
            found |= self._bricks.names(self.identify_fd(dir_fd)[0])
            if not all(self._bricks.sets()):  # where not every set has one here: nothing moves twice
                found.update(self._listed(dir_fd))
        self._need_all()
        return sorted(name for name in found if not (is_root and is_own(name)))

    def _listed(self, dir_fd: int) -> Iterator[bytes]:
        looked = time.monotonic()
        with os.scandir(dir_fd) as entries:
            for entry in entries:
                yield os.fsencode(entry.name)
                if time.monotonic() > looked + _LOOK_S:
                    self._need_all()
                    looked = time.monotonic()


def _need_client(fd: int) -> None:
    """Raises OSError where a directory is not one of a volume: what nothing is mounted on at the moment is empty, and is not the volume."""
    try:
        os.getxattr(fd, GFID)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            raise OSError(errno.ENOTCONN, _UNMOUNTED) from None
        raise


def _mount_of(path: bytes) -> bytes:
    """The root of the mount in which a directory is."""
    device = os.stat(path).st_dev
    while path != b"/" and os.stat(os.path.dirname(path)).st_dev == device:
        path = os.path.dirname(path)
    return path


def _possible(text: bytes) -> Iterable[bytes]:
    """The paths that a list of them, divided by colons, may mean: names may hold colons, too."""
    pieces = text.split(b":/")
    pieces[0] = pieces[0].removeprefix(b"/")
    if len(pieces) > _NAMES_AT_ONCE:
        return pieces
    ends = range(len(pieces) + 1)
    return [b":/".join(pieces[a:b]) for a in ends for b in ends if a < b] if len(pieces) > 1 else pieces
