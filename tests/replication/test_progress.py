"""Durable progress: the mark never moves back, and never past something that failed."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replication.errors import ExitCode
from replication.progress import Failure, Progress, ProgressError, decode_dirs, encode_dirs


@pytest.fixture
def progress(tmp_path):
    made = Progress(tmp_path / "progress.sqlite")
    yield made
    made.close()


def crawled(progress, time_ns=100):
    """A first hybrid crawl that is over: only from then on there is a mark."""
    epoch = progress.new_epoch(0)
    assert progress.begin_crawl(epoch, "c", 0, time_ns, 0, {"C:0": "[]"})
    progress.crawled("c", "C:0", {})
    progress.end_crawl(epoch, "c")
    return epoch


def failure(gfid="ab", first_ns=0):
    return Failure(step="data", gfid=gfid, path="p", code="io", error="why", first_ns=first_ns)


def test_no_mark_before_the_first_crawl_is_complete(progress):
    epoch = progress.new_epoch(0)
    progress.advance(epoch, 3, 300)
    assert progress.brick().stime_ns == 0


def test_epochs_only_grow(progress):
    assert progress.new_epoch(0) == 1
    assert progress.new_epoch(10) == 10
    assert progress.new_epoch(3) == 11


def test_an_old_epoch_moves_nothing(progress):
    old = crawled(progress)
    progress.new_epoch(0)
    assert progress.advance(old, 9, 900).front == 0


def test_mark_stops_at_a_failure_and_goes_on_when_it_is_resolved(progress):
    epoch = crawled(progress)
    progress.record([failure(first_ns=200)], [])
    assert progress.advance(epoch, 5, 500).stime_ns == 199
    progress.record([], ["data:ab"])
    assert progress.brick().stime_ns == 500


def test_a_failure_counts_its_tries_and_keeps_its_first_time(progress):
    progress.record([failure(first_ns=200)], [])
    progress.record([failure(first_ns=900)], [])
    (found,) = progress.failures()
    assert (found.tries, found.first_ns) == (2, 200)


def test_retries_are_put_off_further_each_time(progress):
    progress.record([failure()], [])
    assert progress.due(10) == []
    assert [f.gfid for f in progress.due(10, at_once=True)] == ["ab"]


def test_an_interrupted_crawl_goes_on_where_it_was(tmp_path, progress):
    progress.begin_crawl(progress.new_epoch(0), "c", 4, 100, 0, {"C:0": encode_dirs([(bytes(16), b"")])})
    progress.crawled("c", "C:0", {"C:0.1": encode_dirs([(bytes(16), b"a\xff\nb")])})
    progress.crawled("another", "C:0.1", {})
    again = Progress(tmp_path / "progress.sqlite")
    assert again.brick().crawl == "c"
    assert decode_dirs(again.frontier()["C:0.1"]) == [(bytes(16), b"a\xff\nb")]
    again.close()


def test_one_crawl_at_a_time(progress):
    epoch = progress.new_epoch(0)
    assert progress.begin_crawl(epoch, "c", 0, 1, 0, {})
    assert not progress.begin_crawl(epoch, "d", 0, 2, 0, {})
    assert progress.brick().crawl == "c"
    progress.end_crawl(epoch, "c")
    assert not progress.begin_crawl(epoch - 1, "d", 0, 2, 0, {})


def test_a_complete_crawl_forgives_what_it_could_read_this_time(progress):
    epoch = progress.new_epoch(0)
    progress.record([Failure(step="entry", gfid=None, path="d", code="permission", error="no")], [])
    progress.record([failure("cd")], [])
    progress.begin_crawl(epoch, "c", 0, 2**62, 0, {})
    progress.end_crawl(epoch, "c")
    assert [f.step for f in progress.failures()] == ["data"]


def test_a_damaged_database_is_one_clear_line(tmp_path):
    path = tmp_path / "progress.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(ProgressError) as caught:
        Progress(path)
    assert caught.value.exit_code == ExitCode.USAGE
    assert str(path) in caught.value.message
    assert path.read_bytes().startswith(b"this is no database")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.integers(0, 50), st.integers(0, 5000)),
        st.tuples(st.just("fail"), st.sampled_from(["a1", "b2", "c3"]), st.integers(1, 5000)),
        st.tuples(st.just("resolve"), st.sampled_from(["a1", "b2", "c3"]), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_mark_is_monotone_and_below_front_and_new_failures(tmp_path_factory, actions):
    progress = Progress(tmp_path_factory.mktemp("p") / "progress.sqlite")
    epoch = crawled(progress, time_ns=0)
    before = progress.brick()
    for kind, one, two in actions:
        if kind == "advance":
            progress.advance(epoch, one, two)
        elif kind == "fail":
            progress.record([failure(one, first_ns=two)], [])
        else:
            progress.record([], [f"data:{one}"])
        now = progress.brick()
        assert now.stime_ns >= before.stime_ns
        assert now.front >= before.front
        assert now.stime_ns <= now.front_ns
        oldest = min((f.first_ns for f in progress.failures()), default=None)
        if oldest is not None:
            assert now.stime_ns <= max(before.stime_ns, oldest - 1)
        before = now
    progress.close()


def test_every_transaction_is_on_disk(tmp_path, progress):
    crawled(progress)
    with sqlite3.connect(tmp_path / "progress.sqlite") as other:
        assert other.execute("SELECT complete FROM brick").fetchone() == (1,)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
