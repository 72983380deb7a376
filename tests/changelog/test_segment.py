from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replication.changelog.reader import read_segment
from replication.changelog.record import DirHint, Kind, Record, SegmentDamaged
from replication.changelog.segment import HEADER_SIZE, Place, SegmentWriter, parse_segment, recover

names = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name)
hints = st.builds(DirHint, st.binary(min_size=4, max_size=40), st.binary(max_size=300))
kinds = st.integers(min_value=1, max_value=7)
places = st.builds(
    Place,
    gfid=st.binary(min_size=16, max_size=16),
    hint=hints,
    is_object=st.just(False),
    names=st.dictionaries(names | st.just(b""), kinds, min_size=1, max_size=8),
)
objects = st.builds(
    Place,
    gfid=st.binary(min_size=16, max_size=16),
    hint=st.builds(DirHint, st.binary(min_size=4, max_size=40), st.just(b"")),
    is_object=st.just(True),
    names=st.dictionaries(st.just(b""), kinds, min_size=1),
)
groups = st.lists(st.lists(places | objects, max_size=5), max_size=4)

counter = itertools.count()
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def expected(written: list[list[Place]]) -> list[Record]:
    found = []
    for place in itertools.chain.from_iterable(written):
        for name, bits in place.names.items():
            if name:
                found.append(Record(Kind(bits), None, place.gfid, name))
            else:
                found.append(Record(Kind(bits), place.gfid, None, None))
    return found


def write(directory: Path, written: list[list[Place]], *, close: bool = True) -> Path:
    path = directory / f"{next(counter)}"
    writer = SegmentWriter(str(path), 7, 1000)
    for group in written:
        writer.append(group)
    if close:
        writer.close(2000)
    else:
        writer.abandon()
    assert writer.size == path.stat().st_size
    return path


@quick
@given(groups)
def test_what_is_written_is_read(tmp_path: Path, written: list[list[Place]]) -> None:
    segment = read_segment(write(tmp_path, written))
    assert list(segment) == list(segment.records) == expected(written)
    assert (segment.info.number, segment.info.start_ns, segment.info.end_ns) == (7, 1000, 2000)
    assert segment.info.closed
    assert segment.info.torn_bytes == 0
    for place in itertools.chain.from_iterable(written):
        assert place.gfid in (segment.objects if place.is_object else segment.dirs)


def test_the_last_definition_of_a_directory_counts(tmp_path: Path) -> None:
    gfid = bytes(16)
    old = Place(gfid, DirHint(b"hand", b"old/path"), False, {b"a": 1})
    new = Place(gfid, DirHint(b"hand", b"new/path"), False, {b"b": 1})
    assert read_segment(write(tmp_path, [[old, new]])).dirs[gfid].path == b"new/path"


@quick
@given(groups)
def test_cut_anywhere_leaves_a_prefix(tmp_path: Path, written: list[list[Place]]) -> None:
    data = write(tmp_path, written).read_bytes()
    whole = expected(written)
    for size in sorted({*range(0, len(data), 7), HEADER_SIZE, len(data) - 1}):
        segment = parse_segment("cut", data[:size])
        found = list(segment)
        assert found == whole[: len(found)]
        assert not segment.info.closed
        # A cut between two blocks leaves nothing torn, but the closing block is missing all the same.
        assert segment.info.torn_bytes < size or size < HEADER_SIZE


@quick
@given(groups, st.data())
def test_a_changed_byte_is_noticed(tmp_path: Path, written: list[list[Place]], data: st.DataObject) -> None:
    content = bytearray(write(tmp_path, written).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SegmentDamaged) as raised:
        parse_segment("flipped", bytes(content))
    assert raised.value.path == "flipped"
    assert 0 <= raised.value.offset <= at + 24


@quick
@given(groups.filter(any), st.data())
def test_recovery_cuts_the_tail_and_closes(
    tmp_path: Path, written: list[list[Place]], data: st.DataObject
) -> None:
    path = write(tmp_path, written, close=False)
    size = path.stat().st_size
    kept = data.draw(st.integers(HEADER_SIZE, size))
    os.truncate(path, kept)
    if kept == size:  # a power failure can leave a file longer than what was written
        os.truncate(path, size + data.draw(st.integers(0, 50)))
    torn = read_segment(path).info.torn_bytes
    recovered = recover(str(path))
    segment = read_segment(path)
    assert recovered.header.torn_bytes == torn
    assert recovered.records == len(list(segment))
    assert recovered.size == path.stat().st_size
    assert segment.info.closed
    assert recover(str(path)).header.torn_bytes == 0


def test_large_segments_are_cut_into_blocks(tmp_path: Path) -> None:
    many = {b"name of some length %d" % n: n % 7 + 1 for n in range(40_000)}
    place = Place(b"p" * 16, DirHint(b"hand", b"dir"), False, many)
    path = write(tmp_path, [[place]])
    assert {record.name: int(record.kinds) for record in read_segment(path)} == many


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"#!/bin/sh\n" * 10)
    with pytest.raises(SegmentDamaged, match="not a changelog"):
        read_segment(path)
