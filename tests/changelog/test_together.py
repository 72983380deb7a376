"""Segments that are read as one."""

from __future__ import annotations

import pytest

from replication.changelog.record import DirHint, Kind, Record, Segment, SegmentDamaged, SegmentHeader
from replication.changelog.together import Together

HINT = DirHint(b"h", b"path")


def segment(number: int, *names: bytes) -> Segment:
    records = [Record(Kind.E, None, b"p" * 16, name) for name in names]
    return Segment(records, SegmentHeader("seamark", "1", number), {bytes([number]) * 16: HINT})


def test_records_come_one_after_another_with_what_is_known_of_their_directories() -> None:
    segments = {3: segment(3, b"a", b"b"), 5: segment(5, b"b", b"c")}
    together = Together(segments.__getitem__, [3, 5])
    assert [record.name for record in together.records] == [b"a", b"b", b"b", b"c"]
    assert set(together.dirs) == {b"\3" * 16, b"\5" * 16}
    assert len(list(together.records)) == 4  # as often as one likes


def test_the_one_that_is_damaged_is_known() -> None:
    def read(number: int) -> Segment:
        if number == 5:
            raise SegmentDamaged("5", 0, "torn")
        return segment(number, b"a")

    together = Together(read, [3, 5, 6])
    with pytest.raises(SegmentDamaged):
        list(together.records)
    assert together.number == 5
