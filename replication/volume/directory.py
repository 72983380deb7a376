"""A directory volume: any POSIX tree on one file system, looked at through descriptors.

Everything is opened beneath the root without following symlinks, and an object is what its gfid
says, never what its path says. Reading leaves access times alone where the system allows it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as st
import time
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from replication.errors import ExitCode, SeamarkError
from replication.observation import Change, Entry, Inode
from replication.secondary.filters import EVERYTHING, Filters
from replication.secondary.handles import inode_number
from replication.volume.handle import Stat, open_beneath, open_by_handle, stat_at
from replication.volume.identity import ROOT_GFID, identify
from replication.volume.xattrs import read_xattrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger("seamark.volume")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
RESERVED = b".seamark"
# Kernels before multigrain timestamps (6.13) stamp changes with the time of the last tick: two
# changes within one tick look alike. Younger than this, a state is not taken for final.
_RACY_NS = 20_000_000
_CTIME = Struct("<QQ")
_TYPE = 0o170000  # the bits of a mode that say what it is
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP, errno.EXDEV}
_O_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class VolumeError(SeamarkError):
    """The primary is not there, or is not what it was."""

    code = "primary-gone"


class VanishedError(Exception):
    """The object asked for is no longer where it was, or no longer itself."""


class Summary(NamedTuple):
    """One directory, for comparison with a secondary: digest of its names, and where to go on."""

    digest: bytes
    names: int
    subdirs: list[tuple[bytes, bytes]]  # (gfid, name)
    newest_ns: int  # the latest ctime of any of them


class DirectoryVolume:
    """The primary directory. One per process; holds a descriptor of the root."""

    # Whether the kernel may keep pages of a file that other hosts have written to since.
    keeps_pages = False
    # Whether lseek(2) can be believed where it says that there is a hole.
    tells_holes = True
    # Whether extended attributes may change, and the ctime stays as it is.
    hides_xattrs = False
    # Whether a directory is found by its handle at every moment, also while it, or one above it, is renamed.
    keeps_handles = True

    def __init__(self, root: bytes, identity: str = "") -> None:
        """``identity``: of the root, as it was before; another directory in its place is refused."""
        self.root = os.path.realpath(root)
        try:
            self.root_fd = os.open(self.root, _O_DIR)
        except OSError as error:
            raise self._unopened(root, error) from None
        if identity and self.identify_fd(self.root_fd)[0].hex() != identity:
            os.close(self.root_fd)
            raise VolumeError(f"primary {os.fsdecode(root)} is not the directory that it was: is it mounted?")
        # O_NOATIME is for owners and CAP_FOWNER; without it reading is still right, it only leaves a trace.
        self._noatime = os.O_NOATIME

    @staticmethod
    def _unopened(root: bytes, error: OSError) -> SeamarkError:
        """Why there is no such volume."""
        return VolumeError(
            f"primary {os.fsdecode(root)}: {error.strerror}; give a directory that exists and is readable",
            ExitCode.NOT_FOUND if error.errno == errno.ENOENT else ExitCode.USAGE,
        )

    def close(self) -> None:
        os.close(self.root_fd)

    def check_in_place(self) -> None:
        """Raises VolumeError when the path leads to another directory by now, or nowhere: unmounted, renamed."""
        mine = os.fstat(self.root_fd)
        try:
            there = os.stat(self.root)
        except OSError as error:
            raise VolumeError(f"primary {os.fsdecode(self.root)} is gone: {error.strerror}") from None
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise VolumeError(
                f"primary {os.fsdecode(self.root)} is not the directory that it was: is it mounted?"
            )

    def check_answers(self, error: OSError) -> None:
        """Raises SeamarkError where an error says that the whole volume is away, and nothing of what was looked at."""

    @property
    def mounted(self) -> DirectoryVolume:
        """The same as everybody sees it: what is judged, or written to, is that."""
        return self

    def is_current(self) -> bool:
        """Whether this is still the way to look at it."""
        return True

    # ---- identity

    def identify(self, dir_fd: int, name: bytes) -> tuple[bytes, Stat]:
        """See identity.py. Raises OSError."""
        return identify(dir_fd, name)

    def identify_fd(self, fd: int) -> tuple[bytes, Stat]:
        """gfid and stat of an open descriptor. Raises OSError."""
        return self.identify(fd, b"")

    def believed(self, dir_fd: int, name: bytes, stat: Stat) -> Stat:
        """What was just found there, where its attributes can be believed. Raises OSError where they cannot."""
        return stat

    def believe_directory(self) -> None:
        """Raises OSError where what was just read of a directory's attributes cannot be believed."""

    def stat(self, dir_fd: int, name: bytes = b"") -> Stat:
        """Of ``name`` in a directory, or of a descriptor. Raises OSError."""
        return stat_at(dir_fd, name)

    def xattrs(self, target: int | bytes) -> dict[str, str]:
        """See read_xattrs. Raises OSError."""
        return read_xattrs(target)

    def is_at(self, dir_fd: int, name: bytes, gfid: bytes) -> bool:
        """Whether that object has this name now. Raises OSError where it cannot be told."""
        try:
            return self.identify(dir_fd, name)[0] == gfid
        except OSError as error:
            if error.errno in GONE:
                return False
            raise

    def paths_of(self, gfid: bytes) -> list[bytes] | None:
        """Where an object is now, if the volume can tell; here it cannot: None."""
        return None

    # ---- opening

    def open_dir(self, path: bytes, gfid: bytes) -> int:
        """Open the directory ``gfid`` at ``path`` (relative, b"" = root, which is ROOT_GFID, too, whatever its own is).

        Raises VanishedError when that path is not (or no longer) that directory, OSError when it cannot be read.
        """
        fd = self.open_dir_unchecked(path)
        if (path or gfid != ROOT_GFID) and self.identify_fd(fd)[0] != gfid:
            os.close(fd)
            raise VanishedError(path)
        return fd

    def open_dir_unchecked(self, path: bytes) -> int:
        """Open whatever directory is at ``path`` now. Raises VanishedError, OSError."""
        try:
            return open_beneath(self.root_fd, path, _O_DIR)
        except OSError as error:
            if error.errno == errno.EXDEV:
                log.warning("%s is another file system: it is not replicated", os.fsdecode(path))
            if error.errno in GONE:
                raise VanishedError(path) from None
            raise

    def is_mount_point(self, path: bytes) -> bool:
        """Whether something is mounted at ``path``; False also where that cannot be told."""
        directory, name = os.path.split(path)
        try:
            fd = open_beneath(self.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return False
        try:
            return stat_at(fd, name).mount_root
        except OSError:
            return False
        finally:
            os.close(fd)

    def open_dir_by_handle(self, handle: bytes) -> tuple[int, bytes]:
        """Open a directory wherever it is now; its descriptor and present path in the volume.

        Raises VanishedError when it is gone or outside of the volume, PermissionError without the
        capability that handles need, OSError when it is deeper than a path can be long.
        """
        try:
            fd = open_by_handle(self.root_fd, handle, _O_DIR)
        except PermissionError:
            raise
        except OSError:
            raise VanishedError(handle) from None
        try:
            path = os.readlink(b"/proc/self/fd/%d" % fd)
            inside = path.startswith(self.root.rstrip(b"/") + b"/") and os.fstat(fd).st_nlink
        except OSError:  # its path is longer than one may be
            os.close(fd)
            raise
        if path == self.root:
            return fd, b""
        if not inside:
            os.close(fd)
            raise VanishedError(path)
        return fd, path[len(self.root.rstrip(b"/")) + 1 :]

    def open_file(
        self, dir_fd: int, name: bytes, expect: tuple[int, int, int], gfid: bytes
    ) -> tuple[int, Stat]:
        """Open a regular file for reading, if it still is ``gfid``; its descriptor and stat.

        ``expect`` is (inode number, ctime_ns, bytes) as observed. Raises VanishedError, OSError.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            try:
                fd = os.open(name, flags | self._noatime, dir_fd=dir_fd)
            except PermissionError:
                fd = os.open(name, flags, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in GONE:
                raise VanishedError(name) from None
            raise
        try:
            stat = self.stat(fd)
            if not self._is(fd, stat, expect, gfid):
                raise VanishedError(name)
            if not st.S_ISREG(stat.mode):
                raise VanishedError(name)
            if self.keeps_pages:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            os.close(fd)
            raise
        return fd, stat

    def _is(self, fd: int, stat: Stat, expect: tuple[int, int, int], gfid: bytes) -> bool:
        """While inode number and ctime are those that were observed, its handle need not be asked for."""
        return (stat.ino, stat.ctime_ns) == expect[:2] or self.identify_fd(fd)[0] == gfid

    # ---- looking

    def observe(self, dir_fd: int, name: bytes, change: Change) -> Entry:
        """What ``name`` is in a directory now. Raises OSError when that cannot be told."""
        try:
            gfid, s = self.identify(dir_fd, name)
            s = self.believed(dir_fd, name, s)
        except FileNotFoundError:
            self.confirm_absence()
            return Entry(name, None)  # anything else that goes wrong says nothing of what is there
        if s.mount_root and not st.S_ISDIR(s.mode):
            return Entry(
                name, None
            )  # as of a directory that is mounted: what it stands for is not of this volume
        inode = Inode(
            gfid, s.mode, s.uid, s.gid, s.nlink, s.ino, s.rdev, s.size, s.mtime_ns, s.atime_ns,
            settled(s.ctime_ns),
        )  # fmt: skip
        if not st.S_ISLNK(s.mode):
            return Entry(name, inode, None, change)
        target = self._target(dir_fd, name)
        return Entry(name, None) if target is None else Entry(name, inode, target, change)

    def _target(self, dir_fd: int, name: bytes) -> bytes | None:
        """Of what was a symlink just now; None: it is none any more. Raises OSError."""
        try:
            return os.readlink(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return None
            raise

    def observe_each(
        self, dir_fd: int, names: Iterable[tuple[bytes, Change]]
    ) -> Iterable[tuple[bytes, Entry | OSError]]:
        """``observe``, of many names of a directory: what each is, or why that cannot be told."""

        def look(wanted: tuple[bytes, Change]) -> tuple[bytes, Entry | OSError]:
            try:
                return wanted[0], self.observe(dir_fd, *wanted)
            except OSError as error:
                return wanted[0], error

        return self.each(look, names)

    def each(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterable[_Result]:
        """Look at each, in order; where looking means waiting for others, at several at a time."""
        return map(work, items)

    def confirm_absence(self) -> None:
        """A name was not found. Raises OSError where that does not mean that there is none."""

    def names(self, dir_fd: int, *, is_root: bool) -> list[bytes]:
        """The names in a directory, sorted by bytes; at the root without our own. Raises OSError."""
        # Encoded in one go: a third of what name by name takes. No name holds a NUL.
        listed = os.listdir(dir_fd)
        names = os.fsencode("\0".join(listed)).split(b"\0") if listed else []
        if is_root and RESERVED in names:
            names.remove(RESERVED)
        names.sort()
        return names

    def summarise(
        self, dir_fd: int, names: Iterable[bytes], path: bytes = b"", filters: Filters = EVERYTHING
    ) -> Summary:
        """Digest one directory as the secondary's index does, without what ``filters`` leave out of it.

        Raises OSError on what cannot be read.
        """
        prefix = path + b"/" if path else b""
        parts: list[bytes] = []
        subdirs: list[tuple[bytes, bytes]] = []
        newest = 0
        brief, pack = self._brief, _CTIME.pack
        for name, found in self.each(lambda name: (name, brief(dir_fd, name)), names):
            if found is None:
                continue
            ino, ctime, gfid = found
            # A file that is mounted over counts here, and not on the secondary: its directory is then looked at.
            if filters and filters.excludes(prefix + name, gfid is not None):
                continue
            parts.append(name + b"\0" + pack(ino, ctime))
            newest = max(newest, ctime)
            if gfid is not None:
                subdirs.append((gfid, name))
        digest = blake2b(b"".join(parts), digest_size=16).digest()
        return Summary(digest, len(parts), subdirs, newest)

    def _brief(self, dir_fd: int, name: bytes) -> tuple[int, int, bytes | None] | None:
        """Inode number and ctime, of a directory its gfid as well; None: it is gone. Raises OSError."""
        try:
            s = os.stat(
                name, dir_fd=dir_fd, follow_symlinks=False
            )  # the C of it is faster than our own statx by ctypes
            gfid = self.identify(dir_fd, name)[0] if s.st_mode & _TYPE == st.S_IFDIR else None
        except FileNotFoundError:
            return None
        return inode_number(s.st_ino), s.st_ctime_ns, gfid


def settled(ctime_ns: int) -> int:
    """A ctime that may stand for a version, or 0 when a change could still hide behind it."""
    return ctime_ns if time.time_ns() - ctime_ns > _RACY_NS else 0
