"""The bricks of a volume that lie on this node, asked for what they have, where the volume's own answer may miss something.

Distribution shows a name where it looks for it, and while files and layouts move that may be a moment too early or too
late: a listing asks one set of bricks after the other, and what moved behind its back is in none of their answers; a
directory is listed by the bricks that its name belongs to by now, whether they have it already or not. Where a brick has
a name that a listing lacks, that name is to be looked up. (Bricks may also have names that are gone: of one that was away.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as st
from collections.abc import Callable, Iterator
from uuid import UUID

# Of a directory in the root that holds, under their gfids, objects that were taken from their names while a brick was healed, for
# good perhaps. No client may look into it.
TAKEN = b".glusterfs-anonymous-inode-"
_GRAPH = b".meta/graphs/active"
_LINK = "trusted.gfid2path."
_LINKTO = "trusted.glusterfs.dht.linkto"
_ROOT = UUID(int=1).bytes
_LINKTO_MODE = st.S_IFREG | st.S_ISVTX  # of what only says which brick has the file
_Has = Callable[[bytes], bool]
# What moves has come to another brick before it leaves the one that it was on. Who looks at one after the other may be too
# early at the first and too late at the second, but not again.
_LOOKS = 2


class LocalBricks:
    """``mount``: the root of a mount of the volume. Nothing of this is believed where another brick may know better."""

    def __init__(self, mount: bytes) -> None:
        self._graph = os.path.join(mount, _GRAPH)
        self._read = b""  # the graph that the sets are of
        self._sets: list[list[bytes]] = []

    def sets(self) -> list[list[bytes]]:
        """Of each set of bricks that hold the same files those of this node; empty where it has none. Raises OSError."""
        graph = os.readlink(self._graph)
        if graph != self._read:
            self._sets = [
                [path for path in self._paths(each) if _is_brick(path)]
                for each in self._below(self._distribution())
            ]
            self._read = graph
        return self._sets

    def _distribution(self) -> bytes:
        """The translator that distributes files over sets."""
        return os.path.join(self._graph, next(n for n in sorted(os.listdir(self._graph)) if n.endswith(b"-dht")))  # fmt: skip

    def _below(self, translator: bytes) -> list[bytes]:
        folder = os.path.join(translator, b"subvolumes")
        names = sorted(os.listdir(folder), key=int)
        return [os.path.join(self._graph, os.path.basename(os.readlink(os.path.join(folder, name)))) for name in names]  # fmt: skip

    def _paths(self, translator: bytes) -> list[bytes]:
        """The bricks, on whatever node, that a translator leads to."""
        try:
            with open(os.path.join(translator, b"options", b"remote-subvolume"), "rb") as file:
                return [file.read().strip()]
        except FileNotFoundError:  # it is not the client of one, but above some
            return [path for each in self._below(translator) for path in self._paths(each)]

    # ---- what they have

    def names(self, directory: bytes) -> set[bytes]:
        """All names that a directory (its gfid) has on any of them. Raises OSError."""
        found: set[bytes] = set()
        for brick in self._all() * _LOOKS:
            found |= _names(brick, directory)
        return found

    def have(self, directory: bytes, name: bytes) -> bool:
        """Whether all of some set have this name, and more than a hint to where it is."""
        return self._any_set(lambda brick: _is_there(os.path.join(_handle(brick, directory), name)))

    def have_object(self, gfid: bytes) -> bool:
        """The same of an object, under whatever name."""
        return self._any_set(lambda brick: _is_there(_handle(brick, gfid)))

    def directory(self, gfid: bytes) -> bytes | None:
        """Where a directory is, from the volume's root on; None where it is none, or some set does not have it everywhere."""
        for each in self.sets():
            if each and all(_is_directory(_handle(brick, gfid)) for brick in each):
                with contextlib.suppress(OSError, ValueError):
                    return _path(each[0], gfid)
        return None

    def links(self, gfid: bytes) -> list[bytes]:
        """All names that a file has on any of them, from the volume's root on, but for those of what was put aside (TAKEN)."""
        found: set[bytes] = set()
        for brick in self._all():
            with contextlib.suppress(OSError, ValueError):
                found.update(_links(brick, gfid))
        return sorted(path for path in found if not path.startswith(TAKEN))

    def _all(self) -> list[bytes]:
        return [brick for each in self.sets() for brick in each]

    def _any_set(self, has: _Has) -> bool:
        return any(each and all(map(has, each)) for each in self.sets() * _LOOKS)


def _handle(brick: bytes, gfid: bytes) -> bytes:
    name = str(UUID(bytes=gfid)).encode()
    return os.path.join(brick, b".glusterfs", name[:2], name[2:4], name)


def _is_brick(path: bytes) -> bool:
    return os.path.isdir(os.path.join(path, b".glusterfs"))


def _names(brick: bytes, directory: bytes) -> set[bytes]:
    """Empty where the brick does not have it. Raises OSError."""
    try:
        found = set(os.listdir(_handle(brick, directory)))
    except OSError as error:
        if error.errno == errno.ELOOP:  # each level is a symlink to the one above: 40 of them are followed
            found = set(os.listdir(os.path.join(brick, _path(brick, directory))))
        elif error.errno in (errno.ENOENT, errno.ENOTDIR):
            return set()
        else:
            raise
    return found - {b".glusterfs"} if directory == _ROOT else found


def _path(brick: bytes, directory: bytes) -> bytes:
    """Where a directory is in the brick. Raises OSError, ValueError."""
    names: list[bytes] = []
    while directory != _ROOT:
        target = os.readlink(_handle(brick, directory))  # ../../aa/bb/<gfid of the parent>/<name>
        above, name = os.path.split(target)
        names.append(name)
        directory = UUID(os.path.basename(above).decode()).bytes
    return b"/".join(reversed(names))


def _links(brick: bytes, gfid: bytes) -> Iterator[bytes]:
    """The paths in the brick that a file's attributes name: each is PARENT'S GFID/NAME. Raises OSError, ValueError."""
    handle = _handle(brick, gfid)
    for attribute in os.listxattr(handle, follow_symlinks=False):
        if attribute.startswith(_LINK):
            value = os.getxattr(handle, attribute, follow_symlinks=False)
            parent, _, name = value.partition(b"/")
            yield os.path.join(_path(brick, UUID(parent.decode("ascii")).bytes), name)


def _is_directory(handle: bytes) -> bool:
    """Those of directories are symlinks with one name; that of a symlink is another link to it."""
    try:
        found = os.lstat(handle)
    except OSError:
        return False
    return st.S_ISLNK(found.st_mode) and found.st_nlink == 1


def _is_there(path: bytes) -> bool:
    """Whether something is there that is not only a hint to where it is."""
    try:
        if os.lstat(path).st_mode != _LINKTO_MODE:
            return True
        os.getxattr(path, _LINKTO, follow_symlinks=False)
    except OSError as error:
        return error.errno == errno.ENODATA
    return False
