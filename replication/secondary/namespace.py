"""Carrying out steps on the namespace: create, link, rename, unlink, limbo.

Each step makes sure that what it takes away is ours (its inode number is the index's), moves aside what
is not, and replaces by a rename only a name's shadow (shadows.py): so a name that goes from one object to
another is never free in between.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Callable, Container, Dict, List, Optional

from replication.secondary import faults
from replication.secondary.displaced import Displacer
from replication.secondary.gfids import Gfids
from replication.secondary.index import Key, Row, is_object_of
from replication.secondary.metadata import Powers
from replication.secondary.shadows import Shadows
from replication.secondary.syscalls import rename_new
from replication.secondary.tree import Tree

# The file system has no hard links, this inode has too many, or it is not ours to link (protected_hardlinks).
_NO_LINK = (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_TRIES = 100  # times that a name we have just freed may be taken again by others


def limbo_name(row: Row) -> bytes:
    return row.gfid.hex().encode()


class Namespace:
    """The steps, with counts of what was done since ``begin``.

    ``staging_fd`` and ``fresh``: where things are made aside, and under which name. ``gfids``: those that they must have.
    """

    def __init__(
        self, tree: Tree, powers: Powers, staging_fd: int, fresh: Callable[[], bytes], gfids: Optional[Gfids] = None
    ) -> None:  # fmt: skip
        self.tree = tree
        self.powers = powers
        self.displacer = Displacer(tree)
        self.shadows = Shadows(tree)
        self._staging_fd = staging_fd
        self._fresh = fresh
        self._gfids = gfids
        self.counts: Dict[str, int] = {}
        self._lost: List[int] = []
        self.begin()

    def begin(self) -> None:
        self.counts = dict.fromkeys(("created", "renamed", "linked", "removed", "limbo"), 0)
        self.displacer.count = self.astray = 0
        self._lost = []  # directories whose object is lost, and whose names are still in the index

    def all_counts(self) -> Dict[str, int]:
        return dict(self.counts, displaced=self.displacer.count, astray=self.astray)

    def standing(self, key: Key) -> Optional[os.stat_result]:
        """What really stands at a name. Raises LostDirectory, OSError."""
        try:
            return os.stat(key[1], dir_fd=self.tree.fd(key[0]), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_ours(self, row: Row, key: Key) -> bool:
        """Whether the inode stands at its name; anything else there is moved aside."""
        found = self.standing(key)
        if found is None:
            return False
        if is_object_of(row, found) and found.st_dev == self.tree.device:
            return True
        self.displacer.displace(key)
        return False

    def displace_astray(self, key: Key) -> None:
        """Whatever stands at a name whose inode the index has lost, which must not be: it is counted."""
        self.astray += 1
        if self.standing(key) is not None:
            self.displacer.displace(key)

    # ---- taking away

    def unlink(self, row: Row, key: Key) -> None:
        """Remove one of several names, or a name in limbo."""
        if row.ino and self.is_ours(row, key):
            fd = self.tree.changing(key[0])
            os.unlink(key[1], dir_fd=fd)
        self.counts["removed"] += 1

    def leave(self, row: Row, key: Key) -> None:
        """One of several names is another's now: what stands there is its shadow."""
        if row.ino and self.is_ours(row, key):
            self.shadows.cast(key, row.ino)

    def to_limbo(self, row: Row, key: Key, stay: bool = False) -> bool:
        """Move an inode that loses its last name into limbo. False: it was not there, and is lost.

        ``stay``: as another link; what stands at the name is its shadow.
        """
        if not self.is_ours(row, key):
            self.lose(row)
            return False
        tree = self.tree
        if not stay or not self._linked(row, key, None):
            self._rename(tree.changing(key[0]), key[1], tree.limbo_fd, limbo_name(row), row, None)
        if row.is_dir:
            tree.moved[row.id] = None
        self.counts["limbo"] += 1
        return True

    def lose(self, row: Row) -> None:
        """An object of ours was taken away by somebody else: it is wanted again."""
        row.ino = 0
        row.changed = True
        row.pctime = 0
        if row.is_file:
            row.dirty = 1
        elif row.is_dir:
            self._lost.append(row.id)
            self.tree.forget(row.id)
            row.listed = 0
            row.digest = None

    def forget_lost(self, but: Container[Key] = ()) -> None:
        """The index forgets what was in lost directories, when nobody is about to add names of that: not before a plan is saved.

        ``but``: names that were added since.
        """
        lost, self._lost = self._lost, []
        for directory in lost:
            self.tree.index.forget_below(directory, but)

    def forsake(self, row: Row) -> None:
        """A file that has lost its names here comes with new content, and its object is wanted no more."""
        if row.limbo is not None:
            if self.in_limbo(row):
                os.unlink(limbo_name(row), dir_fd=self.tree.limbo_fd)
            row.limbo = None
        self.lose(row)

    # ---- bringing in

    def place(self, row: Row, source: Optional[Key], key: Key, stay: bool = False) -> bool:
        """Rename an inode from a name, or (None) from limbo, to a new name. False: it is lost.

        ``stay``: as another link; what stands at the old name is its shadow.
        """
        tree = self.tree
        if source is None:
            source_fd, source_name = tree.limbo_fd, limbo_name(row)
            if not self.in_limbo(row):
                self.lose(row)
                return False
        else:
            if not self.is_ours(row, source):
                self.lose(row)
                return False
            source_fd, source_name = tree.changing(source[0]), source[1]
        if source is None or not stay or not self._linked(row, source, key):
            self._rename(source_fd, source_name, tree.changing(key[0]), key[1], row, key)
        if row.is_dir:
            tree.moved[row.id] = key
        self.counts["renamed"] += 1
        return True

    def in_limbo(self, row: Row) -> bool:
        try:
            found = os.stat(limbo_name(row), dir_fd=self.tree.limbo_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return is_object_of(row, found)

    def _rename(
        self, source_fd: int, source: bytes, target_fd: int, target: bytes, row: Row, key: Optional[Key]
    ) -> None:  # fmt: skip
        restore = self._writable_dir(row, source, source_fd)
        for _ in range(_TRIES):
            try:
                rename_new(source_fd, source, target_fd, target)
                break
            except FileExistsError:
                pass
            if self._is_there(row, target_fd, target):
                os.unlink(source, dir_fd=source_fd)  # another name of the very inode that comes here
                break
            if key is not None and not row.is_dir and self.shadows.stands(key):
                self._over(source_fd, source, key)
                break
            self._free(target_fd, target, key)
        else:
            raise OSError(errno.EBUSY, "somebody else keeps taking this name", target)
        if restore is not None:
            os.chmod(target, restore, dir_fd=target_fd)

    def _writable_dir(self, row: Row, name: bytes, dir_fd: int) -> Optional[int]:
        """Moving a directory to another parent writes its '..': without privileges that needs its w bit."""
        if self.tree.privileged or not row.is_dir:
            return None
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode & 0o7777
        if mode & 0o200:
            return None
        os.chmod(name, mode | 0o700, dir_fd=dir_fd)
        return mode

    def _is_there(self, row: Row, fd: int, name: bytes) -> bool:
        """Whether a name is one of a file's own links."""
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        return not row.is_dir and found.st_ino == row.ino and found.st_dev == self.tree.device

    def _over(self, source_fd: int, source: bytes, key: Key) -> None:
        """Replace a name's shadow, in one step."""
        faults.point("over")
        os.rename(source, key[1], src_dir_fd=source_fd, dst_dir_fd=self.tree.changing(key[0]))
        self.shadows.forget([key])

    def _free(self, target_fd: int, target: bytes, key: Optional[Key]) -> None:
        """A name that should be free is not."""
        if key is None:
            self.displacer.displace_from(target_fd, target, b".seamark/limbo/" + target)
        else:
            self.displacer.displace(key)

    def link(self, row: Row, source: Key, key: Key) -> bool:
        """Another name for a file. False: the file is lost."""
        if not self.is_ours(row, source):
            self.lose(row)
            return False
        self._link(row, source, key)
        self.counts["linked"] += 1
        return True

    def _linked(self, row: Row, source: Key, key: Optional[Key]) -> bool:
        """Link a file elsewhere (None: to limbo), and leave its shadow at the name. False: not possible here."""
        try:
            self._link(row, source, key)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        self.shadows.cast(source, row.ino)
        faults.point("linked")
        return True

    def _link(self, row: Row, source: Key, key: Optional[Key]) -> None:
        tree = self.tree
        fd, name = (tree.limbo_fd, limbo_name(row)) if key is None else (tree.changing(key[0]), key[1])
        for _ in range(_TRIES):
            try:
                os.link(source[1], name, src_dir_fd=tree.fd(source[0]), dst_dir_fd=fd, follow_symlinks=False)
                return
            except FileExistsError:
                pass
            if self._is_there(row, fd, name):
                return
            if key is not None and self.shadows.stands(key):
                aside = self._fresh()
                os.link(
                    source[1], aside, src_dir_fd=tree.fd(source[0]), dst_dir_fd=self._staging_fd,
                    follow_symlinks=False,
                )  # fmt: skip
                self._over(self._staging_fd, aside, key)
                return
            self._free(fd, name, key)
        raise OSError(errno.EBUSY, "somebody else keeps taking this name", name)

    def create(self, row: Row, key: Key, target: Optional[str]) -> None:
        """Make a directory, symlink, special file or empty file, with owner, mode and times. Raises OSError."""
        fd = self.tree.changing(key[0])
        for _ in range(_TRIES):
            try:
                row.ino = self._make(row, fd, key[1], target)
                break
            except FileExistsError:
                pass
            if not row.is_dir and self.shadows.stands(key):
                aside = self._fresh()
                row.ino = self._make(row, self._staging_fd, aside, target)
                self._over(self._staging_fd, aside, key)
                break
            self.displacer.displace(key)
        else:
            raise OSError(errno.EBUSY, "somebody else keeps taking this name", key[1])
        row.changed = True
        if row.is_dir:
            self.tree.moved[row.id] = key
            self.tree.rows[row.id] = row
            self.tree.touched[row.id] = True
        self.counts["created"] += 1

    def _make(self, row: Row, fd: int, name: bytes, target: Optional[str]) -> int:
        mode = row.mode
        kind = stat.S_IFMT(mode)
        if self._gfids is not None:
            with self._gfids.making(self.tree.staging_fd):
                self._gfids.provide(row, fd, name, target or "")
        elif kind == stat.S_IFREG:
            made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o700, dir_fd=fd)
            os.close(made)
        elif kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=fd)
        elif kind == stat.S_IFLNK:
            os.symlink(os.fsencode(target or ""), name, dir_fd=fd)
        else:
            os.mknod(name, mode & 0o700 | kind, row.rdev, dir_fd=fd)
        try:
            return self._dress(row, fd, name, kind)
        except OSError:
            # Nothing half-made stays behind; the name is ours for this moment.
            (os.rmdir if kind == stat.S_IFDIR else os.unlink)(name, dir_fd=fd)
            raise

    def _dress(self, row: Row, fd: int, name: bytes, kind: int) -> int:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if (found.st_uid, found.st_gid) != (row.uid, row.gid):
            self._chown(name, fd, row, found)
        if kind == stat.S_IFDIR:
            # Its mode and times come when the transaction settles: names are still put into it.
            if found.st_mode & 0o2000 and not row.mode & 0o2000:
                os.chmod(name, 0o700, dir_fd=fd)
            return found.st_ino
        if kind != stat.S_IFLNK:
            os.chmod(name, row.mode & 0o7777, dir_fd=fd)
        os.utime(name, ns=(row.atime, row.mtime), dir_fd=fd, follow_symlinks=False)
        return found.st_ino

    def _chown(self, name: bytes, fd: int, row: Row, found: os.stat_result) -> None:
        try:
            os.chown(name, row.uid, row.gid, dir_fd=fd, follow_symlinks=False)
        except PermissionError:
            if self.powers.chown:
                raise
            if found.st_gid != row.gid:
                try:
                    os.chown(name, -1, row.gid, dir_fd=fd, follow_symlinks=False)
                except OSError:
                    pass


class Step:
    """One step of a plan. ``kind``: unlink, leave, forsake, limbo, place, link, create; ``source`` None means limbo.

    ``stay``: the name that a file goes away from is taken by another, and keeps its shadow until then.
    """

    __slots__ = ("key", "kind", "row", "source", "stay", "target")

    def __init__(
        self, kind: str, row: Row, key: Key, source: Optional[Key] = None, target: Optional[str] = None,
        stay: bool = False,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.row = row
        self.key = key
        self.source = source
        self.target = target
        self.stay = stay
