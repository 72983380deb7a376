"""One brick of this node, followed: what it records, and what its changelog does not say a second time.

A brick records content (D) and metadata (M) of an object once in each of its files. What happens to it after that, until
the next file begins, shows in the ctime of the brick's own inode: that is compared again and again.
Python 3.9: this goes to the nodes whose bricks are followed (replication/bricknode).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from replication.changelog.brickctimes import ctime_of, handle_of
from replication.changelog.bricktail import BrickTail
from replication.changelog.record import Kind, Record

_RACY_NS = 20_000_000  # see volume/directory.py
_EACH_TIME = 1000  # objects that are compared each time; more of them once a second
_COMPARE_S = 1.0


class FollowedBrick:
    """``take`` is called with each record; ``on_lost`` and ``on_restart``: see BrickTail. ``moved``: whether an object (its
    gfid) that is here no more may be on a brick that has other files.
    """

    def __init__(
        self,
        path: str,
        take: Callable[[Record], None],
        on_lost: Callable[[str, int | None], None],
        on_restart: Callable[[int | None], None],
        moved: Callable[[bytes], bool],
    ) -> None:
        self.path = path
        self.tail = BrickTail(path, on_lost, on_restart)
        self._take = take
        self._moved = moved
        # kinds, and the ctime of the brick's inode when it was compared; -1: not looked at yet, 0: it may be younger
        self._objects: dict[bytes, tuple[int, int]] = {}
        self._ended: list[dict[bytes, tuple[int, int]]] = []  # the same of files that were read to their end
        self._unseen: list[tuple[dict[bytes, tuple[int, int]], bytes]] = []  # those not looked at yet
        self._compared_at = 0.0

    @property
    def uneasy(self) -> bool:
        """Whether something may have happened that only ``compare`` finds."""
        return bool(self._objects or self._ended)

    def poll(self, full: Callable[[], bool]) -> bool:
        """See BrickTail.poll. Raises OSError."""
        return self.tail.poll(self._took, self._rolled, full)

    def _took(self, record: Record) -> None:
        if record.parent is None and record.gfid is not None:
            known, ctime = self._objects.get(record.gfid, (0, -1))
            if not known:
                self._unseen.append((self._objects, record.gfid))
            self._objects[record.gfid] = known | int(record.kinds), ctime
        self._take(record)

    def _rolled(self) -> None:
        if self._objects:
            self._ended.append(self._objects)
            self._objects = {}

    def witness(self) -> None:
        """What was taken is compared with how it is now: to be called before anybody can act on it.

        Whoever looks at it and is done, before it was seen here for the first time, would never be told of a change in between.
        """
        now = time.time_ns()
        for objects, gfid in self._unseen:
            kinds, before = objects.get(gfid, (0, 0))
            if before == -1 and (ctime := ctime_of(handle_of(self.path, gfid))) is not None:
                objects[gfid] = kinds, ctime if now - ctime > _RACY_NS else 0
        self._unseen.clear()

    def compare(self, *, whole: bool) -> bool:
        """Take what changed again unrecorded. False: there is much of it, and it was looked at just now; not so where ``whole``."""
        count = len(self._objects) + sum(map(len, self._ended))
        if count > _EACH_TIME and not whole and time.monotonic() < self._compared_at + _COMPARE_S:
            return False
        self._compared_at = time.monotonic()
        self._unseen.clear()
        for ended in self._ended:
            self._compare(ended)
        self._ended.clear()
        self._compare(self._objects)
        return True

    def _compare(self, objects: dict[bytes, tuple[int, int]]) -> None:
        now = time.time_ns()
        for gfid, (kinds, before) in list(objects.items()):
            ctime = ctime_of(handle_of(self.path, gfid))
            if ctime is None:
                del objects[gfid]
                # It is gone; or a rebalance moved it, with what changed of it until then.
                if self._moved(gfid):
                    self._take(Record(Kind(kinds), gfid, None, None))
                continue
            if before not in {-1, ctime}:
                self._take(Record(Kind(kinds), gfid, None, None))
            objects[gfid] = kinds, ctime if now - ctime > _RACY_NS else 0
