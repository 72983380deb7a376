"""A Gluster volume of one brick, looked at in the brick itself: microseconds, where a mount takes a brick's answers.

What the brick has is what clients are shown, but for this: identity, times and link counts are Gluster's own, and so are
some names and attributes. What is not plain (it has no gfid yet, no times of its own, or the mode of a file that is being
moved) is looked at through the mount; and so is everything, once the volume has other bricks. Nothing is written there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as st
import struct
import time
from typing import TYPE_CHECKING
from uuid import UUID

from replication.secondary.handles import inode_number
from replication.volume.directory import DirectoryVolume, VanishedError
from replication.volume.gluster import GlusterVolume, VolumeAway, is_own, is_within_own
from replication.volume.handle import Stat, open_beneath, stat_at
from replication.volume.xattrs import read_xattrs

if TYPE_CHECKING:
    from replication.gluster.single import OnlyBrick

_GFID = "trusted.gfid"
_TIMES = "trusted.glusterfs.mdata"
_MDATA = struct.Struct(">BQQQQQQQ")  # version, flags; ctime, mtime, atime, each in seconds and nanoseconds
_VERSION = 1
_NAME = "trusted.gfid2path."
_HANDLES = b".glusterfs"
_INTERNAL = ("trusted.gfid", "trusted.pgfid.", "trusted.afr.", "trusted.ec.", "trusted.bit-rot.")
_O_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_O_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# A brick takes the handle of a directory away while it renames it: for less than a millisecond, if nobody disturbs it.
_RENAMED_S, _STEP_S = 2.0, 0.001
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
_DEEP = {errno.ELOOP, errno.ENAMETOOLONG}


class _OutsideError(VanishedError):
    """What was opened is not below the root, or not what was meant."""


class _OddError(OSError):
    """The brick by itself does not say what clients are shown of this object."""


class BrickVolume(DirectoryVolume):
    """As DirectoryVolume; ``root`` is in the brick. ``mount``: the same directory in a mount of the volume.

    Descriptors of files may be of the brick or of the mount.
    """

    hides_xattrs = True
    keeps_handles = False

    def __init__(self, brick: OnlyBrick, mount: GlusterVolume) -> None:
        """Raises VolumeError."""
        self._brick, self._mount = brick, mount
        self._top = os.path.realpath(os.fsencode(brick.path))
        super().__init__(os.path.join(self._top, mount.below).rstrip(b"/"))
        self._device = os.fstat(self.root_fd).st_dev

    def close(self) -> None:
        super().close()
        self._mount.close()

    @property
    def mounted(self) -> DirectoryVolume:
        return self._mount

    def is_current(self) -> bool:
        return self._brick.is_so()

    def _need_current(self) -> None:
        if not self._brick.is_so():
            raise VolumeAway("the volume has just been changed")

    def check_in_place(self) -> None:
        self._mount.check_in_place()

    def check_answers(self, error: OSError) -> None:
        self._mount.check_answers(error)

    # ---- one object

    def identify(self, dir_fd: int, name: bytes) -> tuple[bytes, Stat]:
        try:
            return self._read(dir_fd, name)
        except _OddError:
            fd = self._in_mount(dir_fd, name)
        try:
            return self._mount.identify(fd, b"")
        finally:
            os.close(fd)

    def stat(self, dir_fd: int, name: bytes = b"") -> Stat:
        return self.identify(dir_fd, name)[1]

    def xattrs(self, target: int | bytes) -> dict[str, str]:
        found = read_xattrs(target)
        return {name: value for name, value in found.items() if not name.startswith(_INTERNAL)}

    def _read(self, dir_fd: int, name: bytes) -> tuple[bytes, Stat]:
        """Raises _OddError, OSError."""
        if not name:
            return self._read_fd(dir_fd)
        fd = os.open(name, _O_LOOK, dir_fd=dir_fd)
        try:
            return self._read_fd(fd)
        finally:
            os.close(fd)

    def _read_fd(self, fd: int) -> tuple[bytes, Stat]:
        where = b"/proc/self/fd/%d" % fd
        # Times first: a version that is older than its state is looked at again, a newer one would be believed.
        try:
            kept = os.getxattr(where, _TIMES)
            gfid = os.getxattr(where, _GFID)
            version, _, c_s, c_n, m_s, m_n, a_s, a_n = _MDATA.unpack(kept)
        except (OSError, struct.error):
            kept, gfid, version = b"", b"", 0
        found = stat_at(fd, b"")
        if found.dev != self._device:
            return self._mount.identify(fd, b"")
        regular = st.S_ISREG(found.mode)
        if version != _VERSION or len(gfid) != 16 or (regular and found.mode & st.S_ISVTX):
            raise _OddError(errno.ENODATA, "not all of it is in the brick")
        is_dir = st.S_ISDIR(found.mode)
        return gfid, found._replace(
            ino=inode_number(int.from_bytes(gfid[8:], "big")),
            nlink=found.nlink if is_dir else found.nlink - 1,  # a handle is a link
            ctime_ns=c_s * 10**9 + c_n,
            mtime_ns=m_s * 10**9 + m_n,
            atime_ns=a_s * 10**9 + a_n,
            btime_ns=0,
        )

    def _in_mount(self, dir_fd: int, name: bytes) -> int:
        """The same object, as the mount has it. Raises OSError."""
        path = self._path_of(dir_fd)
        if path is None:
            raise FileNotFoundError(errno.ENOENT, "it is gone", name)
        return open_beneath(self._mount.root_fd, os.path.join(path, name), os.O_PATH | os.O_NOFOLLOW)

    def _path_of(self, fd: int) -> bytes | None:
        """Where the object of a descriptor is below the root; None: not there. Raises OSError where that is too deep."""
        path = os.readlink(b"/proc/self/fd/%d" % fd)
        if not os.fstat(fd).st_nlink:
            return None
        if path == self.root:
            return b""
        return path[len(self.root) + 1 :] if path.startswith(self.root + b"/") else None

    # ---- opening

    def open_dir_by_handle(self, handle: bytes) -> tuple[int, bytes]:
        """``handle``: its gfid."""
        until = time.monotonic() + _RENAMED_S
        while True:
            try:
                return self._open_by_handle(handle)
            except _OutsideError:
                raise
            except VanishedError:
                # Its own handle leads nowhere: one above it is being renamed. (If it is itself, that will be recorded.)
                if not os.path.lexists(self._handle(handle)) or time.monotonic() > until:
                    self._need_current()
                    raise
            time.sleep(_STEP_S)

    def _open_by_handle(self, handle: bytes) -> tuple[int, bytes]:
        try:
            fd = os.open(self._handle(handle), _O_DIR)  # it leads on to that of the parent, and so on
        except OSError as error:
            if error.errno in _DEEP:
                return self._open_deep(handle)
            raise VanishedError(handle) from None
        try:
            path = self._path_of(fd)
            if path is not None and not is_within_own(path) and self.identify_fd(fd)[0] == handle:
                return fd, path
        except OSError as error:
            os.close(fd)
            if error.errno in _DEEP:
                return self._open_deep(handle)
            raise
        os.close(fd)
        raise _OutsideError(handle)

    def _open_deep(self, gfid: bytes) -> tuple[int, bytes]:
        fd, path = self._mount.open_dir_by_handle(gfid)
        os.close(fd)
        return self.open_dir(path, gfid), path

    def _handle(self, gfid: bytes) -> bytes:
        name = str(UUID(bytes=gfid)).encode()
        return os.path.join(self._top, _HANDLES, name[:2], name[2:4], name)

    def open_file(
        self, dir_fd: int, name: bytes, expect: tuple[int, int, int], gfid: bytes
    ) -> tuple[int, Stat]:
        try:
            self._read(dir_fd, name)
        except _OddError:
            directory = self._in_mount(dir_fd, b"")
            try:
                return self._mount.open_file(directory, name, expect, gfid)
            finally:
                os.close(directory)
        except OSError as error:
            if error.errno in _GONE:
                raise VanishedError(name) from None
            raise
        return super().open_file(dir_fd, name, expect, gfid)

    def paths_of(self, gfid: bytes) -> list[bytes] | None:
        until = time.monotonic() + _RENAMED_S
        while True:
            try:
                found = self._paths_of(gfid, sure=time.monotonic() > until)
                break
            except VanishedError:
                time.sleep(_STEP_S)
        if not found:
            self._need_current()  # it may have been moved to a new brick
        return found

    def _paths_of(self, gfid: bytes, *, sure: bool) -> list[bytes] | None:
        """Raises VanishedError, unless ``sure``, where a directory that it has a name in is not there."""
        where = self._handle(gfid)
        try:
            os.getxattr(where, _GFID, follow_symlinks=False)
        except OSError as error:
            if error.errno in _GONE:
                return []
            if error.errno != errno.ENODATA:
                raise
            # The handle of a directory is a symlink, which has no gfid.
            with contextlib.suppress(VanishedError):
                fd, path = self.open_dir_by_handle(gfid)
                os.close(fd)
                return [path]
            return []
        try:
            names = [name for name in os.listxattr(where, follow_symlinks=False) if name.startswith(_NAME)]
            texts = [os.getxattr(where, name, follow_symlinks=False) for name in names]
        except OSError as error:
            if error.errno in _GONE:
                return []
            return self._mount.paths_of(gfid)  # renamed between the two
        return [path for text in texts for path in self._named(text, sure=sure)] if texts else None

    def _named(self, text: bytes, *, sure: bool) -> list[bytes]:
        """The path that a name (PARENT'S GFID/NAME) makes; none, where that is not below the root."""
        parent, _, name = text.partition(b"/")
        try:
            fd, path = self.open_dir_by_handle(UUID(parent.decode("ascii")).bytes)
        except (_OutsideError, ValueError):
            return []
        except VanishedError:
            if not sure:
                raise
            return []
        os.close(fd)
        found = os.path.join(path, name)
        return [] if is_within_own(found) else [found]

    # ---- looking

    def confirm_absence(self) -> None:
        self._need_current()

    def names(self, dir_fd: int, *, is_root: bool) -> list[bytes]:
        self._need_current()
        found = super().names(dir_fd, is_root=is_root)
        self._need_current()
        if is_root:
            found = [
                name for name in found if not (is_own(name) or (name == _HANDLES and self.root == self._top))
            ]
        return found

    def _brief(self, dir_fd: int, name: bytes) -> tuple[int, int, bytes | None] | None:
        try:
            gfid, found = self.identify(dir_fd, name)
        except FileNotFoundError:
            return None
        return found.ino, found.ctime_ns, gfid if st.S_ISDIR(found.mode) else None
