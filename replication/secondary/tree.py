"""Directories of the secondary as descriptors. Every name is used relative to one of them, never a path.

A directory is found through the index, a component at a time, without following symlinks, and must be
the inode that the index says: so nothing that is planted on the secondary leads us out of the root.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from typing import Dict, List, Optional, Set, Tuple

from replication.secondary import layout
from replication.secondary.index import Index, Key, Row
from replication.secondary.layout import ROOT_ID
from replication.secondary.protocol import AgentError

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT = 512  # descriptors
_DEEPEST = 100_000  # components of a path


class LostDirectory(Exception):
    """A directory of ours is not where we put it: somebody else took it away or replaced it."""

    def __init__(self, inode: int) -> None:
        super().__init__("directory {} is not there any more".format(inode))
        self.inode = inode


class Tree:
    """Descriptors of the root, of our own directories below ``.seamark``, and of any directory by id."""

    def __init__(self, root_fd: int, index: Index) -> None:
        self.index = index
        self.root_fd = root_fd
        self.device = os.fstat(root_fd).st_dev
        self.hidden_fd = os.open(layout.HIDDEN, _OPEN_DIR, dir_fd=root_fd)
        self.limbo_fd = os.open(layout.LIMBO, _OPEN_DIR, dir_fd=self.hidden_fd)
        self.staging_fd = os.open(layout.STAGING, _OPEN_DIR, dir_fd=self.hidden_fd)
        self.displaced_fd = os.open(layout.DISPLACED, _OPEN_DIR, dir_fd=self.hidden_fd)
        self.privileged = os.geteuid() == 0
        self._fds: "OrderedDict[int, int]" = OrderedDict()
        self._inos: Dict[int, int] = {}
        self._verified: Set[int] = set()
        # What this transaction knows better than the index: where a directory is now (None: limbo), and its row.
        self.moved: Dict[int, Optional[Key]] = {}
        self.rows: Dict[int, Row] = {}
        # Directories changed in this transaction; their times (and modes) are put right at its end.
        self.touched: Dict[int, bool] = {}

    def fd(self, inode: int) -> int:
        """A descriptor of a directory, good until the next few hundred calls. Raises LostDirectory, OSError."""
        if inode == ROOT_ID:
            return self.root_fd
        if inode in self._verified:
            found = self._fds.get(inode)
            if found is not None:
                self._fds.move_to_end(inode)
                return found
        return self._open(inode)

    def changing(self, inode: int) -> int:
        """The same, for a directory in which a name is about to change."""
        fd = self.fd(inode)
        if inode not in self.touched:
            self.touched[inode] = False
            if not self.privileged:
                self._loosen(inode, fd)
        return fd

    def _loosen(self, inode: int, fd: int) -> None:
        """Without privileges we need write permission in our own read-only directories for a moment."""
        mode = os.fstat(fd).st_mode & 0o7777
        if mode & 0o700 != 0o700:
            try:
                os.fchmod(fd, mode | 0o700)
            except OSError:
                return
            self.touched[inode] = True

    def row(self, inode: int) -> Optional[Row]:
        row = self.rows.get(inode)
        return row if row is not None else self.index.inode_by_id(inode)

    def place(self, inode: int) -> Optional[Key]:
        """The name of a directory; None: it is in limbo."""
        if inode in self.moved:
            return self.moved[inode]
        names = self.index.names_of(inode)
        return names[0] if names else None

    def _open(self, inode: int) -> int:
        """Open it, or make sure once per transaction that what is open still is where the index says."""
        chain: List[Tuple[int, Optional[Key]]] = []
        at: Optional[int] = inode
        while at is not None and at != ROOT_ID and not (at in self._verified and at in self._fds):
            if len(chain) > _DEEPEST:
                raise AgentError("io", "index: directories in a circle")
            key = self.place(at)
            chain.append((at, key))
            at = key[0] if key else None
        fd = -1
        for at, key in reversed(chain):
            fd = self._fds.get(at, -1)
            if fd < 0:
                fd = self._open_one(at, key)
            else:
                self._verify(at, key)
            self._verified.add(at)
        return fd

    def _verify(self, inode: int, key: Optional[Key]) -> None:
        parent_fd, name = self._where(inode, key)
        try:
            found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            if found.st_ino == self._inos[inode] and found.st_dev == self.device:
                return
        except FileNotFoundError:
            pass
        self.forget(inode)
        raise LostDirectory(inode)

    def _where(self, inode: int, key: Optional[Key]) -> Tuple[int, bytes]:
        if key is not None:
            return self.fd(key[0]), key[1]
        row = self.row(inode)
        if row is None:
            raise AgentError("io", "index: no directory {}".format(inode))
        return self.limbo_fd, row.gfid.hex().encode()

    def _open_one(self, inode: int, key: Optional[Key]) -> int:
        row = self.row(inode)
        if row is None:
            raise AgentError("io", "index: no directory {}".format(inode))
        parent_fd, name = self._where(inode, key)
        try:
            fd = os.open(name, _OPEN_DIR, dir_fd=parent_fd)
        except PermissionError:
            if self.privileged:
                raise
            fd = self._open_forbidden(name, parent_fd, key)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise LostDirectory(row.id) from None
            raise
        found = os.fstat(fd)
        if found.st_ino != row.ino or found.st_dev != self.device:
            os.close(fd)
            raise LostDirectory(row.id)
        self._fds[row.id] = fd
        self._inos[row.id] = row.ino
        if len(self._fds) > _KEPT:
            oldest, unused = self._fds.popitem(last=False)
            os.close(unused)
            self._inos.pop(oldest, None)
        return fd

    def _open_forbidden(self, name: bytes, parent_fd: int, key: Optional[Key]) -> int:
        """A directory of our own whose mode forbids us to enter it, or its parent."""
        if key is not None and key[0] != ROOT_ID:
            self.changing(key[0])
        found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if found.st_mode & 0o500 != 0o500 and found.st_uid == os.geteuid():
            os.chmod(name, (found.st_mode & 0o7777) | 0o700, dir_fd=parent_fd)
        fd = os.open(name, _OPEN_DIR, dir_fd=parent_fd)
        os.fchmod(fd, found.st_mode & 0o7777)
        return fd

    def forget(self, inode: int) -> None:
        """Close a directory's descriptor: it was removed or replaced."""
        self._verified.discard(inode)
        self._inos.pop(inode, None)
        fd = self._fds.pop(inode, None)
        if fd is not None:
            os.close(fd)

    def begin(self) -> None:
        self.moved.clear()
        self.rows.clear()
        self.touched.clear()
        self._verified.clear()

    def reset(self) -> None:
        """After a rollback: ids may come to mean something else."""
        self.begin()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._inos.clear()

    def close(self) -> None:
        """Of this root nothing stays open."""
        self.reset()
        for fd in (self.limbo_fd, self.staging_fd, self.displaced_fd, self.hidden_fd, self.root_fd):
            os.close(fd)

    def settle(self) -> None:
        """Give the directories that we changed the times which the primary has. Failures are no errors."""
        missing = [i for i in self.touched if i not in self.rows]
        if missing:
            self.rows.update(self.index.inodes_by_id(missing))
        for inode, mode_too in self.touched.items():
            row = self.rows.get(inode)
            if row is None:
                continue
            try:
                fd = self.fd(inode)
                if mode_too:
                    os.fchmod(fd, row.mode & 0o7777)
                os.utime(fd, ns=(row.atime, row.mtime))
            except (OSError, LostDirectory):
                continue
        self.touched.clear()

    def path(self, key: Key) -> bytes:
        """A name's path from the root, for people, and for rsync."""
        parts = [key[1]]
        at: Optional[int] = key[0]
        while at is not None and at != ROOT_ID:
            where = self.place(at)
            if where is None:
                row = self.row(at)
                parts.append(row.gfid.hex().encode() if row else b"?")
                parts.append(layout.HIDDEN + b"/" + layout.LIMBO)
                break
            parts.append(where[1])
            at = where[0]
        return b"/".join(reversed(parts))
