"""Several segments read as one: who is behind looks once at what they say between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from replication.changelog.record import DirHint, Record, Segment


class Together:
    """``records`` and ``dirs`` as of a Segment; a place may come more than once. ``number``: of the one that is being read.

    Raises what ``read`` raises, of that one; SegmentDamaged also while records are iterated.
    """

    def __init__(self, read: Callable[[int], Segment], numbers: Sequence[int]) -> None:
        self.number = numbers[0]
        self._read, self._numbers = read, numbers
        self.dirs: dict[bytes, DirHint] = {}

    @property
    def records(self) -> Iterator[Record]:
        for number in self._numbers:
            self.number = number
            segment = self._read(number)
            self.dirs.update(segment.dirs)
            yield from segment.records
