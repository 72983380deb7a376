"""What was written aside, and waits for its names."""

from __future__ import annotations

import os
from typing import Optional

from replication.secondary.changes import Changes
from replication.secondary.metadata import Item


class Staged:
    """A file that is written and dressed, and waits for its names.

    It is an open descriptor without a name, or (``name`` is not None) a name in ``dir_fd``. ``is_right``: made as the very
    object that it is to be (through.py). ``changes``: what there is is no file, but this.
    """

    __slots__ = ("changes", "dir_fd", "fd", "ino", "is_right", "item", "name")

    def __init__(
        self, item: Item, fd: int, ino: int, dir_fd: int, name: Optional[bytes], is_right: bool = False
    ) -> None:
        self.item = item
        self.fd = fd
        self.ino = ino
        self.dir_fd = dir_fd
        self.name = name
        self.is_right = is_right
        self.changes: Optional[Changes] = None

    def go_back(self, dir_fd: int, name: bytes) -> None:
        """Have it stand there again, where it was made as another object meanwhile. Raises OSError."""
        if self.name is not None and (self.dir_fd, self.name) != (dir_fd, name):
            os.rename(self.name, name, src_dir_fd=self.dir_fd, dst_dir_fd=dir_fd)
            self.dir_fd, self.name = dir_fd, name

    def close(self) -> None:
        if self.fd >= 0:
            # Once, also where that fails: by then another file may have its number.
            fd, self.fd = self.fd, -1
            os.close(fd)
        if self.name is not None:
            try:
                os.unlink(self.name, dir_fd=self.dir_fd)
            except FileNotFoundError:
                pass
            self.name = None
