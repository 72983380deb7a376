"""A copy of a root on its own file system whose files share their blocks with it (or, if it must be, are copied).

It is made in two passes, so that nobody waits long: the first looks at everything while work goes on, the second, under
the lock of the root, copies again what changed meanwhile (inode number or ctime are others), and so ends in a state that
was the tree's at one moment. Which inode became which is kept in a table on disk, by which the copied index is renumbered.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from typing import Dict, Generator, Iterator, List, NamedTuple, Optional, Union

from replication.secondary import layout
from replication.secondary.clones import clone, copy_content, removal
from replication.secondary.metadata import PLAIN_ACLS
from replication.secondary.syscalls import list_directory

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_ACLS = ("system.posix_acl_default", "system.posix_acl_access")
_GRAIN_NS = 100_000_000  # ctime comes from a clock that ticks: one so young may stand for two states
_MOVED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO)
_REFUSED = (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES)
_TABLE = "CREATE TABLE copied(ino INTEGER PRIMARY KEY, ctime INTEGER NOT NULL, new INTEGER NOT NULL, linked INTEGER NOT NULL)"
_SAVE = "INSERT OR REPLACE INTO copied VALUES(?, ?, ?, ?)"
_FIND = "SELECT ctime, new, linked FROM copied WHERE ino = ?"


class _Copied(NamedTuple):
    """What became of an inode. ``linked``: a link of the copy waits for further names of it."""

    ctime: int
    new: int
    linked: int


class _Level(NamedTuple):
    """A directory under way. ``left``: names in the copy that were not met in the source yet; ``found``: how it looked."""

    source: int
    target: int
    names: Iterator[bytes]
    left: Dict[bytes, None]
    found: os.stat_result
    loosened: bool


class _Below(NamedTuple):
    """A directory to go on in: the source's and the copy's."""

    source: int
    target: int
    found: os.stat_result
    loosened: bool


_Step = Generator[int, None, Optional[_Below]]


class Mirror:
    """Copies of one file system. ``links_fd``: an empty directory beside them. Raises OSError, sqlite3.Error."""

    def __init__(self, links_fd: int, table: bytes, *, share: bool) -> None:
        self._links_fd = links_fd
        self._share = share
        self._device = 0
        self._final = False
        self._db = sqlite3.connect(os.fsdecode(table), isolation_level=None)
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute(_TABLE)
        self._db.execute("BEGIN")

    def finish(self) -> None:
        """Nothing more is copied; the table is there for others to read."""
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def run(self, source_fd: int, target_fd: int, *, final: bool) -> Iterator[int]:
        """One pass over a directory; a step for each name. ``final``: nobody changes anything meanwhile."""
        self._final = final
        self._device = os.fstat(source_fd).st_dev
        top = _Below(os.dup(source_fd), os.dup(target_fd), os.fstat(source_fd), False)
        stack: List[_Level] = []
        self._enter(stack, top)
        try:
            while stack:
                level = stack[-1]
                name = next(level.names, None)
                if name is None:
                    for gone in level.left:
                        yield from _remove(level.target, gone)
                    dress(level.target, level.source, level.found)
                    _close(stack.pop())
                    continue
                level.left.pop(name, None)
                below = yield from self._one(level, name)
                if below is not None:
                    self._enter(stack, below)
                yield 1
        finally:
            for level in stack:
                _close(level)

    def _enter(self, stack: List[_Level], at: _Below) -> None:
        try:
            names, there = list_directory(at.source), list_directory(at.target)
            if self._final:
                _strip(at.target)
        except OSError as error:
            _close(at)
            if self._final or error.errno not in _MOVED:
                raise
            return
        if not stack:  # what is ours is copied by itself
            names = [name for name in names if name != layout.HIDDEN]
            there = [name for name in there if name != layout.HIDDEN]
        self._note(at.found, os.fstat(at.target).st_ino, 0)
        left = dict.fromkeys(there)
        stack.append(_Level(at.source, at.target, iter(names), left, at.found, at.loosened))

    def _one(self, level: _Level, name: bytes) -> _Step:
        """One name. Gives where to go on, if it is a directory."""
        try:
            found = os.stat(name, dir_fd=level.source, follow_symlinks=False)
            if found.st_dev != self._device:
                return None  # another file system, or subvolume, that somebody has put there: it is not the replica's
            there = _look(level.target, name)
            known = self._find(found.st_ino)
            same = there is not None and known is not None and there.st_ino == known.new
            if stat.S_ISDIR(found.st_mode):
                return (yield from self._directory(level, name, found, there if same else None))
            if same and known is not None and known.ctime == found.st_ctime_ns:
                return None
            yield from _remove(level.target, name)
            if known is not None and known.linked and known.ctime == found.st_ctime_ns:
                os.link(b"%d" % found.st_ino, name, src_dir_fd=self._links_fd, dst_dir_fd=level.target)
            else:
                yield from self._copy(level, name, found, known)
        except OSError as error:
            # In the first pass things move below our hands; the second has the last word.
            if self._final or error.errno not in (*_MOVED, errno.EACCES, errno.EPERM):
                raise
        return None

    def _directory(
        self, level: _Level, name: bytes, found: os.stat_result, there: Optional[os.stat_result]
    ) -> _Step:
        # Where we are not root, one of ours that we may not look into is open to us for as long as we are in it.
        loosened = self._final and os.geteuid() != 0 and found.st_mode & 0o500 != 0o500
        if loosened:
            os.chmod(name, stat.S_IMODE(found.st_mode) | 0o500, dir_fd=level.source)
        source = self._open(level.source, name, found, _DIR)
        try:
            if there is None or not stat.S_ISDIR(there.st_mode):
                yield from _remove(level.target, name)
                os.mkdir(name, 0o700, dir_fd=level.target)
            else:
                os.chmod(name, 0o700, dir_fd=level.target)
            return _Below(source, os.open(name, _DIR, dir_fd=level.target), found, loosened)
        except BaseException:
            os.close(source)
            raise

    def _copy(
        self, level: _Level, name: bytes, found: os.stat_result, known: Optional[_Copied]
    ) -> Iterator[int]:
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFREG:
            new = yield from self._file(level, name, found)
        else:
            if kind == stat.S_IFLNK:
                os.symlink(os.readlink(name, dir_fd=level.source), name, dir_fd=level.target)
            else:
                os.mknod(name, kind | 0o600, found.st_rdev, dir_fd=level.target)
            new = _dress_name(level, name, found)
        link = b"%d" % found.st_ino
        if known is not None and known.linked:
            os.unlink(link, dir_fd=self._links_fd)
        if found.st_nlink > 1:
            os.link(name, link, src_dir_fd=level.target, dst_dir_fd=self._links_fd, follow_symlinks=False)
        if self._final:  # we may have had to open it to us, which is a change
            found = os.stat(name, dir_fd=level.source, follow_symlinks=False)
        self._note(found, new, int(found.st_nlink > 1))

    def _file(self, level: _Level, name: bytes, found: os.stat_result) -> Generator[int, None, int]:
        source = self._open(level.source, name, found, _READ)
        try:
            target = os.open(name, _NEW, 0o600, dir_fd=level.target)
            try:
                if self._share:
                    clone(source, target)
                else:
                    yield from copy_content(source, target, found.st_size)
                dress(target, source, found)
                return os.fstat(target).st_ino
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _open(self, dir_fd: int, name: bytes, found: os.stat_result, flags: int) -> int:
        """What was looked at, and nothing that was put in its place meanwhile."""
        try:
            fd = os.open(name, flags, dir_fd=dir_fd)
        except PermissionError:
            # Ours, and its mode forbids us to read it: for a moment it does not.
            if not self._final or found.st_uid != os.geteuid():
                raise
            mode = stat.S_IMODE(found.st_mode)
            os.chmod(name, mode | 0o400, dir_fd=dir_fd)
            try:
                fd = os.open(name, flags, dir_fd=dir_fd)
            finally:
                os.chmod(name, mode, dir_fd=dir_fd)
        opened = os.fstat(fd)
        if (opened.st_ino, opened.st_dev) != (found.st_ino, found.st_dev):
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
        return fd

    def _note(self, found: os.stat_result, new: int, linked: int) -> None:
        young = not self._final and time.time_ns() - found.st_ctime_ns < _GRAIN_NS
        self._db.execute(_SAVE, (found.st_ino, 0 if young else found.st_ctime_ns, new, linked))

    def _find(self, ino: int) -> Optional[_Copied]:
        row = self._db.execute(_FIND, (ino,)).fetchone()
        return None if row is None else _Copied(*row)


def _close(level: Union[_Level, _Below]) -> None:
    if level.loosened:
        os.fchmod(level.source, stat.S_IMODE(level.found.st_mode))
    os.close(level.source)
    os.close(level.target)


def _look(dir_fd: int, name: bytes) -> Optional[os.stat_result]:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _remove(dir_fd: int, name: bytes) -> Iterator[int]:
    found = _look(dir_fd, name)
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        yield from removal(dir_fd, name)
    else:
        os.unlink(name, dir_fd=dir_fd)


def dress(target: int, source: int, found: os.stat_result) -> None:
    """Owner, mode, attributes and times, by descriptors. What we may not set was not set here before either."""
    try:
        os.fchown(target, found.st_uid, found.st_gid)
    except PermissionError:
        pass
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    _attributes(target, source)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _dress_name(level: _Level, name: bytes, found: os.stat_result) -> int:
    """The same for what is not opened; its inode number."""
    try:
        os.chown(name, found.st_uid, found.st_gid, dir_fd=level.target, follow_symlinks=False)
    except PermissionError:
        pass
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=level.target)
    source, target = (os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd) for fd in level[:2])
    try:
        _attributes(b"/proc/self/fd/%d" % target, b"/proc/self/fd/%d" % source)
        new = os.fstat(target).st_ino
    finally:
        os.close(source)
        os.close(target)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=level.target, follow_symlinks=False)
    return new


def _strip(fd: int) -> None:
    """Take the attributes off a directory of the copy: they are given to it again, and nothing made in it inherits any."""
    try:
        for name in os.listxattr(fd):
            os.removexattr(fd, name)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise


def _attributes(target: object, source: object) -> None:
    try:
        names = os.listxattr(source)  # type: ignore[arg-type]
    except OSError:
        return
    for name in sorted(names, key=_ACLS.__contains__):  # an ACL has the last word on the mode
        if name in PLAIN_ACLS:
            continue
        try:
            value = os.getxattr(source, name)  # type: ignore[arg-type]
            os.setxattr(target, name, value)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
