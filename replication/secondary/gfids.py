"""Objects of a root on a Gluster volume are made with the gfids that they have on the primary.

The client's mount (mounting.py) takes orders to make an object of a given gfid, as an extended attribute of the directory,
and finds any object of the volume as ``.gfid/<its gfid>``. Source: xlators/features/gfid-access of GlusterFS.

A gfid belongs to one object of the whole volume, which keeps it as long as it lives. Bricks do not notice when another one
is made with it on a different brick, so we look first. Where one is there already that should not be (somebody moved it,
or it was displaced with an old index) it is fetched.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Dict, List, Optional
from uuid import UUID

from replication.secondary import layout
from replication.secondary.index import Row
from replication.secondary.mounting import GFID, Place, subvolumes
from replication.secondary.syscalls import rename_new

_NEW = "glusterfs.gfid.newfile"
_PATH_OF_DIRECTORY = "glusterfs.ancestry.path"
_PATHS_OF_FILE = "glusterfs.gfidtopath"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATHINFO = "trusted.glusterfs.pathinfo"
_NAMES = 1000  # tried until one is on each brick
_RESERVED = 16  # the first are Gluster's own: of the root, of the trash


def gfid_at(dir_fd: int, name: bytes) -> bytes:
    """Of what stands at a name. Raises OSError."""
    return os.getxattr(b"/proc/self/fd/%d/%s" % (dir_fd, name), GFID, follow_symlinks=False)


class Gfids:
    """The gfids of one volume, for a root on it."""

    def __init__(self, place: Place, root_fd: int) -> None:
        self._place = place
        self._root_fd = root_fd
        self._on_each: List[bytes] = []

    def find(self, gfid: bytes) -> Optional[os.stat_result]:
        """The object of the volume that has it; None when there is none. Raises OSError."""
        try:
            return os.lstat(self._path(gfid))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return None
            raise

    def make(
        self, dir_fd: int, name: bytes, gfid: bytes, mode: int, rdev: int = 0, target: bytes = b""
    ) -> None:
        """A new object: owned by us, not in use yet. Raises FileExistsError where the name is taken, OSError."""
        if int.from_bytes(gfid, "big") < _RESERVED:
            raise OSError(errno.EINVAL, "no gfid of an object", name)
        head = struct.pack("!II37sI", 0, 0, str(UUID(bytes=gfid)).encode(), mode) + name + b"\0"
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

    def fetch(self, gfid: bytes, dir_fd: int, name: bytes) -> None:
        """Move the object that has it to a name that must be free. Raises FileExistsError, OSError.

        PermissionError where it is not below our root: whose it is then is not known.
        """
        # What was displaced comes back rather than a name that may be right.
        for path in sorted(self._paths(gfid), key=lambda path: not path.startswith(layout.HIDDEN + b"/")):
            parent, _, last = path.rpartition(b"/")
            try:
                fd = self._open_beneath(parent)
            except OSError:
                continue
            try:
                if gfid_at(fd, last) == gfid:
                    rename_new(fd, last, dir_fd, name)
                    return
            except FileExistsError:
                raise
            except OSError:
                continue  # it was there, or is only meant by this path
            finally:
                os.close(fd)
        words = "its gfid {} is that of another object of the volume".format(UUID(bytes=gfid))
        raise PermissionError(errno.EPERM, words, name)

    def flush(self, dir_fd: int) -> None:
        """Have every brick write what was done to names and attributes. Content was synced when it was written. Raises OSError.

        A client's syncfs(2) reaches no brick; but a brick's file system writes its journal, in order, when any file on it is
        synced. So we keep a file on each, in ``dir_fd``.
        """
        if not self._on_each:
            self._on_each = self._one_on_each(dir_fd)
        for name in self._on_each:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
            try:
                os.write(fd, b".")
                os.fsync(fd)
            finally:
                os.close(fd)

    def _one_on_each(self, dir_fd: int) -> List[bytes]:
        """Names whose files lie on all sets of bricks. By its name a file is put on one of them."""
        found: Dict[bytes, bytes] = {}
        wanted = subvolumes(self._place)
        for number in range(_NAMES):
            name = b"sync.%d" % number
            os.close(
                os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
            )
            where = os.getxattr(b"/proc/self/fd/%d/%s" % (dir_fd, name), _PATHINFO).replace(name, b"")
            if found.setdefault(where, name) != name:
                os.unlink(name, dir_fd=dir_fd)
            if len(found) >= wanted:
                break
        return list(found.values())

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
        return b"%s/.gfid/%s" % (self._place.mount, str(UUID(bytes=gfid)).encode())

    def _paths(self, gfid: bytes) -> List[bytes]:
        """Where it may be, from our root."""
        text = self._attribute(gfid, _PATH_OF_DIRECTORY)
        if text is None:
            text = self._attribute(gfid, _PATHS_OF_FILE) or b""
            pieces = text.lstrip(b"/").split(b":/")
            # Names may hold colons too: a path may be several pieces.
            found = [
                b":/".join(pieces[a:b]) for a in range(len(pieces)) for b in range(a + 1, len(pieces) + 1)
            ][:64]
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
