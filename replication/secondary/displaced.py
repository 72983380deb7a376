"""What stands in the way and is not ours goes to ``.seamark/displaced/<n>/<its path>``; it is never deleted."""

from __future__ import annotations

import os

from replication.secondary.index import Key
from replication.secondary.syscalls import rename_new
from replication.secondary.tree import Tree


class Displacer:
    """Moves foreign objects aside, and counts them."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.count = 0

    def displace(self, key: Key) -> None:
        """Move whatever stands at a name aside. Raises OSError."""
        self.displace_from(self._tree.changing(key[0]), key[1], self._tree.path(key))

    def displace_from(self, dir_fd: int, name: bytes, path: bytes) -> None:
        """The same, for a name in any directory of the root. ``path`` is where it will be found."""
        tree = self._tree
        number = int(tree.index.meta.get("displaced", 0)) + 1
        tree.index.set_meta("displaced", number)
        at = os.open(
            _fresh(tree.displaced_fd, number), os.O_RDONLY | os.O_DIRECTORY, dir_fd=tree.displaced_fd
        )
        try:
            parts = path.split(b"/")
            for part in parts[:-1]:
                os.mkdir(part, 0o700, dir_fd=at)
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = below
            rename_new(dir_fd, name, at, parts[-1])
        finally:
            os.close(at)
        self.count += 1


def _fresh(displaced_fd: int, number: int) -> bytes:
    """A new directory below displaced: ``number``, or with a suffix where an older index used it."""
    attempt = 0
    while True:
        name = b"%06d" % number if not attempt else b"%06d.%d" % (number, attempt)
        try:
            os.mkdir(name, 0o700, dir_fd=displaced_fd)
            return name
        except FileExistsError:
            attempt += 1
