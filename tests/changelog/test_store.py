from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replication.changelog.index import ENTRY_SIZE, SegmentInfo, State
from replication.changelog.record import DirHint, SegmentDamaged
from replication.changelog.segment import Place, SegmentWriter
from replication.changelog.store import ChangelogStore, NotTheWriter, StoreBusy


def some(name: bytes = b"f", size: int = 1) -> list[Place]:
    names = {name + b"%d" % n: 1 for n in range(size)}
    return [Place(b"d" * 16, DirHint(b"hand", b"d"), False, names)]


@pytest.fixture
def store(tmp_path: Path) -> ChangelogStore:
    store = ChangelogStore(tmp_path / "log")
    store.begin_writing()
    return store


def states(store: ChangelogStore, after: int = 0) -> list[tuple[int, str]]:
    return [(info.number, info.reason or str(info.state)) for info in store.segments(after)]


def test_positions_and_times(store: ChangelogStore) -> None:
    assert store.last_closed() is None
    assert store.open_number() == 1
    store.gap("started", 100)
    info = store.add(some(), 110, 200)
    assert info == store.last_closed()
    assert (info.number, info.start_ns, info.end_ns, info.records, info.state) == (2, 110, 200, 1, State.DATA)
    store.tick(300)
    assert states(store) == [(1, "started"), (2, "data"), (3, "tick")]
    assert states(store, 2) == [(3, "tick")]
    assert store.position_at(50) == 1
    assert store.position_at(150) == store.position_at(200) == 2
    assert store.position_at(250) == 3
    assert store.position_at(301) is None
    assert [record.name for record in store.read(2)] == [b"f0"]
    assert list(store.read(1)) == []
    assert store.size() == info.size == (store.directory / f"{2:016d}.segment").stat().st_size


def test_a_clock_set_back_does_not_move_positions_back(store: ChangelogStore) -> None:
    store.add(some(), 900, 1000)
    assert store.add(some(), 10, 20).end_ns == 1000
    assert store.tick(30).end_ns == 1000
    assert store.tick(40).end_ns == 1001  # by which others see that the agent lives
    assert store.tick(2000).end_ns == 2000


def test_ticks_of_a_long_idle_time_are_one_entry(store: ChangelogStore) -> None:
    store.add(some(), 1, 2)
    for now in range(10_000):
        assert store.tick(10 + now).number == 2
    assert states(store) == [(1, "data"), (2, "tick")]
    assert store.position_at(9_000) == 2
    assert (store.directory / "index").stat().st_size < 5000 * ENTRY_SIZE
    store.end_writing()
    with ChangelogStore(store.directory) as reader:
        last = reader.last_closed()
        assert last is not None
        assert last.end_ns == 10_009


def test_readers_follow_a_writer(store: ChangelogStore) -> None:
    with ChangelogStore(store.directory) as reader:
        assert reader.segments() == []
        for n in range(1, 4):
            store.add(some(), n, n)
            assert [info.number for info in reader.segments(n - 1)] == [n]
        store._index.compact()
        store.add(some(b"x"), 5, 5)
        assert [info.number for info in reader.segments(3)] == [4]
        assert [record.name for record in reader.read(4)] == [b"x0"]
        with pytest.raises(NotTheWriter):
            reader.tick(9)


def _try_to_write(directory: str, answer: multiprocessing.SimpleQueue[str]) -> None:
    try:
        ChangelogStore(directory).begin_writing()
        answer.put("writes")
    except StoreBusy:
        answer.put("busy")


def test_one_writer(store: ChangelogStore) -> None:
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    for expected in ("busy", "writes"):
        process = context.Process(target=_try_to_write, args=(str(store.directory), answer))
        process.start()
        assert answer.get() == expected
        process.join()
        store.close()


def test_retention_keeps_the_last(store: ChangelogStore) -> None:
    for n in range(1, 6):
        store.add(some(), n, n)
    freed = store.retain(3)
    assert freed > 0
    assert states(store) == [(4, "data"), (5, "data")]
    with pytest.raises(KeyError):
        store.read(3)
    store.retain(99)
    assert states(store) == [(5, "data")]
    assert len(list(store.directory.glob("*.segment"))) == 1
    store.end_writing()
    again = ChangelogStore(store.directory)
    again.begin_writing()
    assert again.open_number() == 6


def test_the_limit_becomes_a_gap_and_an_alarm(tmp_path: Path) -> None:
    alarms: list[str] = []
    store = ChangelogStore(tmp_path, max_bytes=20_000, on_alarm=alarms.append)
    store.begin_writing()
    for n in range(1, 30):
        store.add(some(size=100), n, n)
        assert store.size() <= 20_000
    found = store.segments()
    assert found[0].state is State.GAP
    assert found[0].reason == "limit"
    assert found[0].start_ns == 1
    assert [info.state for info in found[1:]] == [State.DATA] * (len(found) - 1)
    assert found[1].number == found[0].number + 1
    assert found[-1].number == 29
    assert alarms
    assert "over its limit" in alarms[0]


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "another's"])
def test_damaged_segments_are_noticed_and_become_gaps(store: ChangelogStore, damage: str) -> None:
    store.add(some(), 1, 2)
    store.add(some(b"x"), 2, 3)
    first, second = sorted(store.directory.glob("*.segment"))
    content = bytearray(first.read_bytes())
    if damage == "missing":
        first.unlink()
    elif damage == "flipped":
        content[70] ^= 1
        first.write_bytes(content)
    elif damage == "cut":
        first.write_bytes(content[:-1])
    else:
        first.write_bytes(second.read_bytes())
    with pytest.raises(SegmentDamaged):
        list(store.read(1))
    store.mark_damaged(1)
    assert states(store) == [(1, "damaged"), (2, "data")]
    assert not first.exists()


def test_a_killed_writer_leaves_a_segment(store: ChangelogStore) -> None:
    store.add(some(), 1, 2)
    writer = SegmentWriter(str(store._path(2)), 2, 5)
    writer.append(some(b"late", 3))
    writer.abandon()
    with store._path(2).open("ab") as file:
        file.write(b"torn")
    store.close()
    again = ChangelogStore(store.directory)
    again.begin_writing()
    assert states(again) == [(1, "data"), (2, "data")]
    assert len(list(again.read(2))) == 3


def test_a_lost_boot_skips_numbers_by_a_gap(store: ChangelogStore) -> None:
    """After a power failure a consumer's stored position may be beyond what is left of the index."""
    for n in range(1, 6):
        store.add(some(), n, n)
    index = store.directory / "index"
    os.truncate(index, index.stat().st_size - 3 * ENTRY_SIZE)
    state = (store.directory / "writer").read_text().replace('"boot": "', '"boot": "another')
    (store.directory / "writer").write_text(state)
    store.close()
    again = ChangelogStore(store.directory)
    again.begin_writing()
    new = again.segments(5)
    assert [info.state for info in new] == [State.GAP]
    assert new[0].number > 5
    assert again.add(some(), 9, 9).number == new[0].number + 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 8 * ENTRY_SIZE - 1), bit=st.integers(0, 7))
def test_no_entry_of_the_index_is_lost_silently(tmp_path: Path, at: int, bit: int) -> None:
    """Whichever byte of the index changes: every position is still there, as itself or within a gap."""
    directory = tmp_path / f"{at}-{bit}"
    store = ChangelogStore(directory)
    store.begin_writing()
    written: list[SegmentInfo] = [store.add(some(), n, n) for n in range(1, 8)]
    store.close()
    content = bytearray((directory / "index").read_bytes())
    content[at] ^= 1 << bit
    (directory / "index").write_bytes(content)

    again = ChangelogStore(directory)
    again.begin_writing()
    again.add(some(), 20, 20)
    for held in (again, ChangelogStore(directory)):
        found = held.segments()
        gaps = [info.number for info in found if info.state is State.GAP]
        for info in written:
            assert info in found or any(number >= info.number for number in gaps)
    again.close()


def test_a_torn_entry_is_cut(store: ChangelogStore) -> None:
    store.add(some(), 1, 1)
    with (store.directory / "index").open("ab") as file:
        file.write(b"D\0\0half an entry")
    store.close()
    again = ChangelogStore(store.directory)
    again.begin_writing()
    again.add(some(), 2, 2)
    assert states(again) == [(1, "data"), (2, "data")]
    assert [info.number for info in ChangelogStore(store.directory).segments()] == [1, 2]
