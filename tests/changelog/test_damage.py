"""Every byte of a segment and of the index changed, every length they may be cut to, any of them missing or twice: noticed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from replication.changelog.index import ENTRY_SIZE, SegmentInfo, State
from replication.changelog.reader import read_segment
from replication.changelog.record import DirHint, Record, SegmentDamaged
from replication.changelog.segment import Place
from replication.changelog.store import ChangelogStore

DATA = Path(__file__).parent / "data"
CHANGES = (0x01, 0x80, 0xFF)


def places() -> list[Place]:
    """As an agent records them: directories with names of any bytes, themselves, and objects without a name."""
    return [
        Place(bytes(16), DirHint(b"handle0", b""), False, {b"new\nline": 1, b"\xff": 4, b"a" * 255: 7}),
        Place(b"d" * 16, DirHint(b"handle1", b"some/dir"), False, {b"f": 2, b"": 2}),
        Place(b"o" * 16, DirHint(b"handle2", b""), True, {b"": 6}),
    ]


@pytest.fixture
def store(in_memory: Callable[[], Path]) -> Iterator[ChangelogStore]:
    with ChangelogStore(in_memory()) as made:
        made.begin_writing()
        for n in range(1, 4):
            made.add(places(), n, n)
        yield made


def damaged(store: ChangelogStore, number: int) -> bool:
    try:
        list(store.read(number))
    except SegmentDamaged:
        return True
    return False


def harmless(store: ChangelogStore, records: list[Record]) -> bool:
    """All records are there: what follows the closing block is no part of the segment, where it is no block."""
    return list(store.read(2)) == records


def test_each_byte_of_a_segment_that_changes(store: ChangelogStore) -> None:
    path = store._path(2)
    content = path.read_bytes()
    for at in range(len(content)):
        for change in CHANGES:
            other = bytearray(content)
            other[at] ^= change
            path.write_bytes(other)
            assert damaged(store, 2), (at, change)


def test_each_length_that_a_segment_is_cut_to(store: ChangelogStore) -> None:
    path = store._path(2)
    content, records = path.read_bytes(), list(store.read(2))
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert damaged(store, 2), size
        path.write_bytes(content[size + 1 :])
        assert damaged(store, 2), f"the first {size + 1} bytes are missing"
        path.write_bytes(content[:size] + content[size + 1 :])
        assert damaged(store, 2), f"byte {size} is missing"
        path.write_bytes(content[:size] + content[size : size + 1] + content[size:])
        assert damaged(store, 2) or harmless(store, records), f"byte {size} is there twice"
        path.write_bytes(content[:size] + bytes(len(content) - size))
        assert damaged(store, 2) or not any(content[size:]), f"zeros from byte {size} on"


def test_a_segment_that_is_there_twice(store: ChangelogStore) -> None:
    path = store._path(2)
    content, records = path.read_bytes(), list(store.read(2))
    for other in (content * 2, content + content[-40:], store._path(3).read_bytes()):
        path.write_bytes(other)
        assert damaged(store, 2)
    path.write_bytes(content + b"\0")
    assert harmless(store, records)


def test_copies_under_later_numbers_are_gaps(store: ChangelogStore) -> None:
    shutil.copy(store._path(3), store._path(4))
    shutil.copy(store._path(3), store._path(9))
    store.close()
    store.begin_writing()
    assert [info.state for info in store.segments(3)] == [State.DATA, State.GAP]
    assert damaged(store, 4)
    assert not store._path(9).exists()
    assert store.mark_damaged(4).state is State.GAP


def test_a_segment_that_is_not_there(store: ChangelogStore) -> None:
    for number in (1, 2, 3):
        store._path(number).unlink()
        assert damaged(store, number)
        assert store.mark_damaged(number).state is State.GAP


@pytest.mark.parametrize("name", ["distribute-brick1.CHANGELOG", "binary.CHANGELOG"])
def test_each_byte_of_one_of_glusters_that_changes(name: str, tmp_path: Path) -> None:
    """It has no checksums: what can be noticed is damage, and nothing is any other error."""
    content = (DATA / name).read_bytes()[:600]
    path = tmp_path / "log"
    noticed = 0
    for at in range(len(content)):
        for other in (content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :], content[:at]):
            path.write_bytes(other)
            with suppress(SegmentDamaged):
                list(read_segment(path))
                continue
            noticed += 1
    assert noticed


# ---- the index


class Written:
    """A changelog with positions of every kind, and copies of it that are damaged."""

    def __init__(self, directory: Path, copies: Callable[[], Path]) -> None:
        self.directory, self._copies = directory, copies
        with ChangelogStore(directory) as store:
            store.begin_writing()
            store.gap("started", 1)
            self.infos: list[SegmentInfo] = [store.add(places(), n, n) for n in range(2, 5)]
            store.tick(5)
            self.infos += [store.add(places(), n, n) for n in range(6, 8)]
            store.gap("overflow", 8)
            self.infos.append(store.add(places(), 9, 9))
            store.finish()
        self.index = (directory / "index").read_bytes()

    def reopened(self, index: bytes) -> list[SegmentInfo]:
        """What the next writer finds, and tells the readers, with this as the index."""
        directory = self._copies()
        shutil.rmtree(directory)
        shutil.copytree(self.directory, directory)
        (directory / "index").write_bytes(index)
        with ChangelogStore(directory) as store:
            store.begin_writing()
            found = store.segments()
        with ChangelogStore(directory) as reader:
            assert reader.segments() == found
        shutil.rmtree(directory)
        return found

    def missing(self, found: list[SegmentInfo]) -> list[int]:
        """Positions with records that are neither there nor within a gap."""
        gaps = [info.number for info in found if info.state is State.GAP]
        there = {info.number: info.records for info in found}
        return [
            info.number
            for info in self.infos
            if there.get(info.number) != info.records and not any(number >= info.number for number in gaps)
        ]


@pytest.fixture
def written(in_memory: Callable[[], Path]) -> Written:
    return Written(in_memory(), in_memory)


def test_each_byte_of_the_index_that_changes(written: Written) -> None:
    for at in range(len(written.index)):
        other = bytearray(written.index)
        other[at] ^= CHANGES[at % len(CHANGES)]
        assert not written.missing(written.reopened(bytes(other))), at


def test_each_length_that_the_index_is_cut_to(written: Written) -> None:
    for size in range(len(written.index)):
        assert not written.missing(written.reopened(written.index[:size])), size


def test_each_entry_of_the_index_missing_or_twice(written: Written) -> None:
    for at in range(0, len(written.index), ENTRY_SIZE):
        before, entry, after = (
            written.index[:at],
            written.index[at : at + ENTRY_SIZE],
            written.index[at + ENTRY_SIZE :],
        )
        assert not written.missing(written.reopened(before + after)), at
        assert not written.missing(written.reopened(before + entry * 2 + after)), at


def test_no_index(written: Written) -> None:
    assert not written.missing(written.reopened(b""))
    os.unlink(written.directory / "index")
    with ChangelogStore(written.directory) as store:
        store.begin_writing()
        assert not written.missing(store.segments())
