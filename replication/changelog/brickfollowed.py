"""One brick of a Gluster volume that is followed, and the objects that it will not record again in the file that is open.

A brick records content (D) and metadata (M) of an object once in each of its files. What happens to it after that, until
the next file begins, shows in the ctime of the brick's own inode.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from uuid import UUID

from replication.changelog.bricksince import ctime_of, handle_of
from replication.changelog.bricktail import BrickTail
from replication.gluster.glusterd import Brick

_RACY_NS = 20_000_000  # see volume/directory.py


class Followed:
    """``number``: of the set of bricks that it is in; ``watch``: inotify's."""

    def __init__(self, brick: Brick, number: int, tail: BrickTail, watch: int) -> None:
        self.brick = brick
        self.number = number
        self.tail = tail
        self.watch = watch
        self.unread = False  # its changelog cannot be read at the moment
        # kinds, and the ctime of the brick's inode when a segment was closed; -1: not looked at yet, 0: it may be younger
        self.objects: dict[bytes, tuple[int, int]] = {}
        self._ended: list[dict[bytes, tuple[int, int]]] = []  # the same of files that were read to their end

    @property
    def waiting(self) -> int:
        """How many objects have to be compared."""
        return len(self.objects) + sum(map(len, self._ended))

    def rolled(self) -> None:
        """The file that was open is at its end: from now on it records again."""
        if self.objects:
            self._ended.append(self.objects)
            self.objects = {}

    def changed_again(self, everyone: Iterable[Followed]) -> Iterator[tuple[bytes, int]]:
        """Objects (gfid, kinds) that changed since they were recorded, or since the last call."""
        others = [each.brick.path for each in everyone if each.number != self.number]
        for ended in self._ended:
            yield from self._compare(ended, others)
        self._ended.clear()
        yield from self._compare(self.objects, others)

    def _compare(
        self, objects: dict[bytes, tuple[int, int]], others: list[str]
    ) -> Iterator[tuple[bytes, int]]:
        now = time.time_ns()
        for gfid, (kinds, before) in list(objects.items()):
            name = str(UUID(bytes=gfid))
            ctime = ctime_of(handle_of(self.brick.path, name))
            if ctime is None:
                del objects[gfid]
                # It is gone; or a rebalance moved it, with what changed of it until then.
                if any(ctime_of(handle_of(other, name)) is not None for other in others):
                    yield gfid, kinds
                continue
            if before not in {-1, ctime}:
                yield gfid, kinds
            objects[gfid] = kinds, ctime if now - ctime > _RACY_NS else 0
