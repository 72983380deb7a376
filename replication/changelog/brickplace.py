"""How far a brick was followed, and whether times of then and now are of one clock.

Python 3.9: this goes to the nodes whose bricks are followed (replication/bricknode).
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from replication.secondary.boot import clock_offset_ns

_SET_NS = 500_000_000  # by which a clock was set, and not only read at another moment


class Clock:
    """The clock of this node. ``offset_ns``: how it is set (clock_offset_ns); ``since_ns``: since when it is, by itself."""

    def __init__(self, offset_ns: int | None = None, since_ns: int | None = None) -> None:
        self._offset_ns = clock_offset_ns() if offset_ns is None else offset_ns
        self._since_ns = time.time_ns() if since_ns is None else since_ns
        self.watch()

    @property
    def as_set(self) -> tuple[int, int]:
        """For another one that goes on."""
        return self._offset_ns, self._since_ns

    def watch(self) -> None:
        """To be called often: who sets it twice between two calls, there and back, is not noticed."""
        offset_ns = clock_offset_ns()
        if abs(offset_ns - self._offset_ns) > _SET_NS:
            self._offset_ns, self._since_ns = offset_ns, time.time_ns()

    def tells(self, since_ns: int) -> bool:
        """Whether what happened after that time has later ones."""
        self.watch()
        return self._since_ns <= since_ns <= time.time_ns()


class Place(NamedTuple):
    """How far a brick was followed: all files up to the second ``floor`` (and those ``done``), and one that is open still.

    That one is read again from its beginning by who goes on: what it records once was perhaps written again since.
    ``boot``: of the node, while it was followed; ``clock``: how its clock was set then (ns), and since when it was (ns, by itself).
    """

    htime: str
    htime_at: int
    floor: int
    done: tuple[tuple[int, int], ...]  # (second, inode number)
    open: tuple[int, int]  # inode number, birth time
    boot: str
    clock: tuple[int, int]

    def as_json(self) -> list[Any]:
        done = [list(each) for each in self.done]
        return [
            self.htime, self.htime_at, self.floor, done, list(self.open), self.boot, list(self.clock)
        ]  # fmt: skip

    @classmethod
    def of_json(cls, said: Any) -> Place:
        """Raises ValueError, whatever ``said`` is."""
        try:
            htime, *numbers = said
            htime_at, floor, done, (ino, birth), boot, (offset, since) = numbers
            pairs = [(int(second), int(inode)) for second, inode in done]
            if not isinstance(htime, str) or "/" in htime or "\0" in htime or not isinstance(boot, str):
                raise ValueError("not a name")
            opened, clock = (int(ino), int(birth)), (int(offset), int(since))
            return cls(htime, int(htime_at), int(floor), tuple(pairs), opened, boot, clock)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("that is no place in a changelog") from None
