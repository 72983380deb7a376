"""Durable progress: the mark never moves back, and never past something that failed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replication import failures, unsettled
from replication.deletes import Held
from replication.errors import ExitCode
from replication.failures import Failure
from replication.frontier import decode_dirs, encode_dirs
from replication.progress import Progress
from replication.progress_file import ProgressError

ROOT = Path(__file__).resolve().parents[2]


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
    progress.end_crawl(epoch, "c", recorded=False)
    return epoch


def failure(gfid="ab", first_ns=0):
    return Failure(step="data", gfid=gfid, path="p", code="io", error="why", first_ns=first_ns)


def test_no_mark_before_the_first_crawl_is_complete(progress):
    epoch = progress.new_epoch(0)
    progress.advance(epoch, 3, 300)
    assert progress.brick().stime_ns == 0


def test_mark_stops_before_deletions_that_are_held(progress):
    epoch = crawled(progress)
    progress.synced(1, held=True, held_since_ns=250)
    assert progress.advance(epoch, 3, 300).stime_ns == 249
    progress.hold(Held(any=True, since_ns=270, question="?"))
    assert progress.brick().stime_ns == 269
    progress.synced(2, held=True, held_since_ns=270)
    assert progress.held().question == "?"
    progress.hold(Held(any=True))  # ignored: they hold nothing
    assert progress.brick().stime_ns == 300
    progress.hold(Held())
    assert progress.held() == Held()
    asked = {"count": 2_000, "most": 5, "names": ["caf\udce9", "b"]}
    progress.hold(Held.of({"held": True, "since": 400, "question": asked}))
    assert "2000 names are gone" in progress.held().question
    assert "caf\\udce9, b, …" in progress.held().question


def test_a_crawl_that_is_open_ends_with_its_changelog(progress):
    epoch = crawled(progress)
    assert progress.begin_crawl(epoch, "old", 500, 600, 0, {"C:0": "[]"})
    progress.changelog_lost()
    brick = progress.brick()
    assert (brick.front, brick.complete, brick.crawl) == (0, False, None)
    assert progress.frontier() == {}
    progress.end_crawl(epoch, "old", recorded=False)  # a late twin
    assert progress.brick().front == 0
    assert progress.begin_crawl(epoch, "new", 7, 700, 0, {"C:0": "[]"})
    progress.end_crawl(epoch, "new", recorded=False)
    assert progress.brick().front == 7


def rows(progress, *, known=False):
    """What is unsettled: what it is of, since when, and up to where; ``known``: all that is unlisted is known by now."""
    if known:
        for row in progress.look(unsettled.rows):
            if row.gfid == unsettled.ALL:
                progress.change(lambda db, row=row: unsettled.doubted(db, row))
    return [(row.gfid, row.since_ns, row.upto) for row in progress.look(unsettled.rows)]


def wait_for(progress, position):
    asked = [row for row in progress.look(unsettled.rows) if row.upto is None]
    progress.change(lambda db: unsettled.wait_for(db, asked, position))


def applied(progress):
    progress.change(lambda db: unsettled.applied(db, progress.brick().front))
    return progress.brick().stime_ns


def test_a_crawl_gives_no_mark_until_what_moved_meanwhile_is_applied(progress):
    """A directory went from where the crawl was still to come to where it had been: it has not seen it."""
    epoch = progress.new_epoch(0)
    assert progress.begin_crawl(epoch, "c", 4, 100, 0, {"C:0": "[]"})
    progress.end_crawl(epoch, "c", recorded=True)
    assert progress.brick().complete
    assert not progress.brick().marked
    assert rows(progress) == [("", 1, None), (None, 1, None)]
    assert rows(progress, known=True) == [(None, 1, None)]
    wait_for(progress, 6)
    progress.advance(epoch, 5, 200)
    assert applied(progress) == 0
    progress.advance(epoch, 6, 300)
    assert progress.brick().stime_ns == 0
    assert applied(progress) == 300
    assert progress.brick().marked


def test_a_later_crawl_holds_the_mark_where_all_was_there(progress):
    epoch = crawled(progress)
    progress.advance(epoch, 3, 300)
    progress.record([failure(first_ns=200)], [])
    assert progress.begin_crawl(epoch, "d", 5, 500, 0, {"C:0": "[]"})
    progress.end_crawl(epoch, "d", recorded=True)
    assert rows(progress) == [("", 301, None), (None, 301, None)]


def test_gaps_while_each_crawl_is_under_way_do_not_keep_the_mark_for_ever(progress):
    """Each asks for a position behind a gap, which only another crawl gets over."""
    epoch = progress.new_epoch(0)
    for number in range(1, 5):
        at = number * 10
        assert progress.begin_crawl(epoch, f"c{number}", at, at * 100, 0, {})
        progress.end_crawl(epoch, f"c{number}", recorded=True)
        rows(progress, known=True)
        wait_for(progress, at + 9)  # the gap is at + 6
        progress.advance(epoch, at + 5, (at + 5) * 100)
        assert applied(progress) == ((at - 5) * 100 if number > 1 else 0)


def test_what_was_noted_later_waits_for_a_later_position(progress):
    epoch = crawled(progress)
    progress.advance(epoch, 1, 150)
    progress.change(lambda db: unsettled.miss(db, [(b"a", b"p/a")], 200))
    asked = progress.look(unsettled.rows)
    progress.change(
        lambda db: unsettled.miss(db, [(b"b", b"p/b")], 300)
    )  # while it is asked where the changelog stands
    progress.change(lambda db: unsettled.wait_for(db, asked, 3))
    assert rows(progress) == [("61", 200, 3), ("62", 300, None)]
    progress.advance(epoch, 3, 400)
    assert applied(progress) == 199  # it was not listed yet
    listed = progress.look(unsettled.rows)[:1]
    progress.change(lambda db: unsettled.listed(db, listed))
    assert applied(progress) == 199  # what left it before is not there yet
    # It was seen to be listed while another tick asked the recorder: that position is an older one.
    progress.change(lambda db: unsettled.wait_for(db, listed, 3))
    assert applied(progress) == 199
    wait_for(progress, 3)
    assert applied(progress) == 299


def test_a_directory_that_is_missed_twice_is_as_old_as_at_first(progress):
    epoch = crawled(progress)
    progress.advance(epoch, 1, 150)
    progress.change(lambda db: unsettled.miss(db, [(b"a", b"p/a")], 200))
    wait_for(progress, 3)
    (before,) = progress.look(unsettled.rows)
    progress.change(lambda db: unsettled.miss(db, [(b"a", b"q/a")], 300))  # elsewhere, and as old as before
    # Whoever saw it as it was before says nothing of it now.
    progress.change(lambda db: unsettled.listed(db, [before]))
    progress.change(lambda db: unsettled.look_again(db, [(before, None)]))
    assert rows(progress) == [("61", 200, None)]
    progress.advance(epoch, 9, 900)
    assert applied(progress) == 199


def test_a_new_epoch_doubts_what_is_newer_than_the_mark(progress):
    """Units of the last one may have known of directories that they were still to list."""
    crawled(progress)
    epoch = progress.new_epoch(0)
    assert rows(progress) == [("", 101, None)]
    assert progress.advance(epoch, 3, 300).stime_ns == 100
    progress.new_epoch(0)
    assert rows(progress) == [("", 101, None)]


def test_a_restart_while_there_is_much_to_catch_up_holds_nothing_where_nothing_was_left(progress):
    """Each batch of the backlog moves the mark."""
    epoch = crawled(progress)
    progress.advance(epoch, 1, 150)
    epoch = progress.new_epoch(0)
    assert rows(progress, known=True) == []
    progress.advance(epoch, 2, 200)
    assert progress.brick().stime_ns == 200


def test_what_failed_before_a_crawl_is_what_that_may_miss(progress):
    """It ends the failure of what it could read this time; the same may have moved out of its sight."""
    epoch = crawled(progress)
    progress.record([Failure(step="entry", gfid=None, path="d", code="io", error="E", first_ns=200)], [])
    progress.advance(epoch, 3, 300)
    progress.begin_crawl(epoch, "d", 5, 2**62, 0, {})
    progress.change(lambda db: unsettled.miss(db, [(b"d", b"d")], unsettled.since_ns(db)))
    progress.end_crawl(epoch, "d", recorded=True)
    assert progress.failures() == []
    assert progress.brick().stime_ns == 199


def test_what_was_missed_is_found_under_another_name(progress):
    crawled(progress)
    progress.change(lambda db: unsettled.miss(db, [(b"a", b"old")], 200))
    progress.change(lambda db: unsettled.seen_at(db, [(b"a", b"new"), (b"b", b"other")]))
    progress.record([Failure(step="data", gfid="01", path="new/f", code="io", error="E")], [], 900)
    assert [each.first_ns for each in progress.failures()] == [200]


def test_a_doubt_that_comes_while_the_secondary_is_asked_stays(progress):
    """Another process starts over: a unit of the old epoch may have left something unlisted meanwhile."""
    crawled(progress)
    progress.new_epoch(0)
    (row,) = progress.look(unsettled.rows)
    progress.new_epoch(0)
    progress.change(lambda db: unsettled.doubted(db, row))
    assert rows(progress) == [("", 101, None)]


def test_a_doubt_that_comes_while_the_recorder_is_asked_waits_for_what_it_says_next(progress):
    """The position may be from before what a unit that was killed meanwhile has left."""
    crawled(progress)
    progress.new_epoch(0)
    asked = progress.look(unsettled.rows)
    progress.change(lambda db: unsettled.doubt(db, 150))
    progress.change(lambda db: unsettled.wait_for(db, asked, 3))
    assert rows(progress) == [("", 101, None)]


def test_what_goes_wrong_below_what_was_missed_is_as_old(progress):
    epoch = crawled(progress)
    progress.change(lambda db: unsettled.miss(db, [(b"a", b"p/a")], 200))
    progress.change(lambda db: unsettled.miss(db, [(b"b", b"p/a/b/c"), (b"c", b"p/ab")], 700))
    below = Failure(step="entry", gfid=None, path="p/a/f", code="io", error="E")
    progress.record([below, failure()], [], 800)
    assert sorted(row.since_ns for row in progress.look(unsettled.rows)) == [200, 200, 700]
    assert sorted(each.first_ns for each in progress.failures()) == [200, 800]
    assert epoch


def test_where_nothing_is_recorded_only_what_a_scan_knows_that_it_missed_holds_the_mark(progress):
    epoch = progress.new_epoch(0)
    assert progress.begin_crawl(epoch, "c", 0, 100, 0, {})
    progress.change(lambda db: unsettled.miss(db, [(b"a", b"p/a")], unsettled.since_ns(db)))
    progress.end_crawl(epoch, "c", recorded=False)
    assert (rows(progress), progress.brick().stime_ns) == ([("61", 1, None)], 0)
    assert progress.begin_crawl(epoch, "d", 0, 200, 0, {})
    progress.change(lambda db: unsettled.miss(db, [(b"b", b"q")], unsettled.since_ns(db)))
    progress.end_crawl(epoch, "d", recorded=False)
    found = progress.look(unsettled.rows)[:1]
    assert progress.begin_crawl(epoch, "e", 0, 300, 0, {})
    progress.change(lambda db: unsettled.scanned(db, found))
    assert progress.brick().stime_ns == 0  # what the open one has listed is not there yet
    progress.end_crawl(epoch, "e", recorded=False)
    assert progress.brick().stime_ns == 0
    progress.change(lambda db: unsettled.scanned(db, found))
    assert (rows(progress), progress.brick().stime_ns) == ([("62", 101, None)], 100)


def test_another_changelog_has_other_positions(progress):
    epoch = crawled(progress)
    progress.change(lambda db: unsettled.miss(db, [(b"a", b"p/a")], 200))
    wait_for(progress, 3)
    progress.changelog_lost()
    assert rows(progress) == [("61", 200, None)]
    assert epoch


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
    progress.end_crawl(epoch, "c", recorded=False)
    assert not progress.begin_crawl(epoch - 1, "d", 0, 2, 0, {})


def test_a_complete_crawl_forgives_what_it_could_read_this_time(progress):
    epoch = progress.new_epoch(0)
    progress.record([Failure(step="entry", gfid=None, path="d", code="permission", error="no")], [])
    progress.record([failure("cd")], [])
    progress.begin_crawl(epoch, "c", 0, 2**62, 0, {})
    progress.end_crawl(epoch, "c", recorded=False)
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
        st.tuples(st.just("skip"), st.sampled_from(["a1", "b2", "c3"]), st.just(0)),
        st.tuples(st.just("hasten"), st.sampled_from(["a1", "b2", "c3"]), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_mark_is_monotone_and_below_front_and_new_failures(in_memory, actions):
    progress = Progress(in_memory() / "progress.sqlite")
    epoch = crawled(progress, time_ns=0)
    before = progress.brick()
    for kind, one, two in actions:
        if kind == "advance":
            progress.advance(epoch, one, two)
        elif kind == "fail":
            progress.record([failure(one, first_ns=two)], [])
        elif kind == "skip":
            progress.skip([f"data:{one}"], who="me", why="")
        elif kind == "hasten":
            progress.hasten([f"data:{one}"])
        else:
            progress.record([], [f"data:{one}"])
        assert not {f.key for f in progress.failures()} & {s.key for s in progress.skips()}
        now = progress.brick()
        assert now.stime_ns >= before.stime_ns
        assert now.front >= before.front
        assert now.stime_ns <= now.front_ns
        oldest = min((f.first_ns for f in progress.failures()), default=None)
        if oldest is not None:
            assert now.stime_ns <= max(before.stime_ns, oldest - 1)
        before = now
    progress.close()


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name), st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_name_of_any_bytes_can_fail_be_skipped_and_come_through(in_memory, name, skipped):
    progress = Progress(in_memory() / "progress.sqlite")
    path = os.fsdecode(name)
    failed = Failure(step="entry", gfid=None, path=path, code="io", error=f"cannot read {path}")
    progress.record([failed], [])
    (found,) = progress.failures()
    assert (found.path, found.error, found.key) == (path, failed.error, failed.key)
    assert progress.failing() == {failed.key}
    if skipped:
        assert progress.skip([failed.key], who="me", why="it does not matter") == 1
        progress.record([failed], [])
        assert progress.failure_count() == 0
        assert [s.path for s in progress.skips()] == [path]
    progress.record([], [failed.key])
    assert (progress.failing(), progress.skips()) == (set(), [])
    progress.close()


def test_a_skip_covers_one_reason_and_stays_on_record(progress):
    epoch = crawled(progress)
    progress.record([failure(first_ns=200)], [])
    assert progress.advance(epoch, 5, 500).stime_ns == 199
    progress.skip(["data:ab"], who="me", why="w")
    assert progress.brick().stime_ns == 500
    progress.record([failure()], [])
    assert progress.failure_count() == 0
    progress.record([Failure(step="data", gfid="ab", path="p", code="permission", error="another")], [])
    assert progress.failure_count() == 1
    assert [s.ended for s in progress.skips(ended=True)] == ["failed"]
    progress.skip(["data:ab"], who="me", why="again")
    progress.hasten(["data:ab"])
    assert [f.next_ns for f in progress.failures()] == [0]
    assert [s.ended for s in progress.skips(ended=True)] == ["failed", "withdrawn"]


def test_every_transaction_is_on_disk(tmp_path, progress):
    crawled(progress)
    with sqlite3.connect(tmp_path / "progress.sqlite") as other:
        assert other.execute("SELECT complete FROM brick").fetchone() == (1,)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_twin_that_ends_a_crawl_again_leaves_the_next_one_alone(progress):
    epoch = crawled(progress)
    assert progress.begin_crawl(epoch, "next", 0, 200, 0, {"C:0": "[]"})
    progress.record([Failure(step="entry", gfid=None, path="d", code="permission", error="no")], [])
    progress.end_crawl(epoch, "c", recorded=False)
    assert progress.frontier() == {"C:0": "[]"}
    assert progress.failure_count() == 1
    assert progress.brick().crawl == "next"


def test_a_failure_holds_the_mark_where_the_change_may_have_been(progress):
    epoch = crawled(progress, time_ns=0)
    progress.record([failure()], [], since_ns=300)
    assert progress.advance(epoch, 5, 500).stime_ns == 299


def test_a_crawl_that_is_resumed_counts_for_the_epoch_that_began_it(progress):
    epoch = progress.new_epoch(0)
    progress.begin_crawl(epoch, "c", 0, 1, 0, {})
    later = progress.new_epoch(0)
    progress.end_crawl(later, "c", recorded=False)
    assert progress.brick().crawl_ended == epoch < later


def test_a_twin_divides_what_is_left_in_no_other_way(progress):
    progress.begin_crawl(progress.new_epoch(0), "c", 0, 1, 0, {"C:0": "[]"})
    progress.crawled("c", "C:0", {"C:0.0": "one"})
    progress.crawled("c", "C:0", {"C:0.0": "two", "C:0.1": "three"})
    assert progress.frontier() == {"C:0.0": "one"}


def test_another_index_or_an_older_one_makes_everything_be_looked_at(progress):
    epoch = progress.new_epoch(0)
    assert progress.secondary_is("a", 5, "boot")
    crawled(progress)
    assert progress.secondary_is("a", 6, "boot")
    assert not progress.secondary_is("a", 4, "boot")  # a snapshot was restored
    assert not progress.brick().complete
    crawled(progress)
    assert not progress.secondary_is("b", 9, "boot")
    assert not progress.brick().complete
    assert epoch


def test_an_older_secondary_has_an_older_mark_and_a_lost_index_costs_none(progress):
    progress.new_epoch(0)
    progress.secondary_is("a", 5, "boot", 0)
    crawled(progress)
    mark = progress.brick().stime_ns
    assert mark > 10
    assert not progress.secondary_is("b", 1, "boot", None)  # made anew from what stands there
    assert progress.brick().stime_ns == mark
    crawled(progress)
    assert not progress.secondary_is(
        "b", 0, "boot", 10
    )  # a snapshot of long ago: true is what it says itself
    assert (progress.brick().stime_ns, progress.brick().front_ns) == (10, 10)
    crawled(progress)
    assert progress.brick().stime_ns == mark
    progress.forget_secondary()
    assert progress.brick().stime_ns == 0


def test_a_restart_of_the_far_host_begins_an_open_crawl_anew(progress):
    epoch = progress.new_epoch(0)
    progress.secondary_is("a", 1, "boot")
    progress.begin_crawl(epoch, "c", 0, 1, 0, {"C:0": "[]"})
    assert not progress.secondary_is("a", 1, "another boot")
    assert progress.brick().crawl is None
    assert progress.frontier() == {}


def test_the_next_comparison_is_due_at_once_when_changes_are_noticed_in_another_way(progress):
    far = 2**62
    progress.scanned("filesystem", far)
    assert progress.scan_due("filesystem")  # so far away only because the clock jumped
    progress.scanned("filesystem", time.time_ns() + 10**12)
    assert not progress.scan_due("filesystem")
    assert progress.scan_due("scan")


def test_many_processes_may_make_it_at_once(tmp_path):
    code = "import sys; from pathlib import Path; from replication.progress import Progress; Progress(Path(sys.argv[1])).brick()"
    for turn in range(5):
        path = tmp_path / f"progress {turn}.sqlite"
        started = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) for _ in range(6)]
        assert [process.wait(60) for process in started] == [0] * 6


def test_what_failed_while_the_clock_was_ahead_is_tried_again(progress, monkeypatch):
    crawled(progress)
    then = time.time_ns() + 7200 * 10**9
    with monkeypatch.context() as ahead:
        ahead.setattr(failures.time, "time_ns", lambda: then)
        progress.record([Failure(step="data", gfid="00", path="a", code="io", error="bad")], [], 1)
        assert progress.due(10) == []
    assert len(progress.due(10)) == 1
    assert progress.due(10) == []


def test_what_will_pass_is_tried_again_soon(progress):
    crawled(progress)
    for gfid, code in (("00", "io"), ("01", "moved")):
        progress.record([Failure(step="data", gfid=gfid, path=gfid, code=code, error="bad")], [], 1)
    slow, soon = (f.next_ns - time.time_ns() for f in sorted(progress.failures(), key=lambda f: f.gfid))
    assert 4 * 10**9 < slow <= 5 * 10**9
    assert 0 < soon <= 10**9
    assert not progress.look(failures.passing_due)
    progress.hasten(["data:00"])
    assert not progress.look(failures.passing_due)
    progress.hasten(["data:01"])
    assert progress.look(failures.passing_due)
    assert len(progress.due(10)) == 2
    assert not progress.look(failures.passing_due)


def test_what_fails_is_not_left_alone_for_longer_than_was_set(progress):
    crawled(progress)
    progress.record([Failure(step="data", gfid="00", path="a", code="io", error="bad")], [], 1)
    for _ in range(12):
        progress.due(10, 30, at_once=True)
        progress.record([Failure(step="data", gfid="00", path="a", code="io", error="bad")], [], 1)
    assert len(progress.due(10, 30, at_once=True)) == 1
    with sqlite3.connect(progress._db.execute("PRAGMA database_list").fetchone()[2]) as db:
        (due_ns,) = db.execute("SELECT next_ns FROM failure").fetchone()
    assert 0 < due_ns - time.time_ns() <= 30 * 10**9


def test_reports_of_a_batch_are_taken_once(progress):
    """A ledger that went back shows a batch again that was taken: what it resolved has failed anew since."""
    epoch = crawled(progress)
    bad = Failure(step="data", gfid="ab", path="p", code="io", error="e")
    progress.take(epoch, 1, [bad], [], 1)
    progress.take(epoch, 2, [], [(bad.key, failures.NOW)], 1)
    assert progress.failure_count() == 0
    progress.take(epoch, 3, [bad], [], 1)
    progress.take(epoch, 2, [], [(bad.key, failures.NOW)], 1)
    assert progress.failure_count() == 1
    assert progress.taken(epoch) == 3


def test_what_was_seen_to_be_right_before_it_failed_again_is_a_failure(progress):
    """A look whose batch is durable only now; the failure is of a later batch, which is under way."""
    epoch = crawled(progress)
    bad = Failure(
        step="entry", gfid=None, path="p", code="io", error="e", of=failures.within(bytes(16), b"p")
    )
    progress.record([bad], [])
    looked_ns = time.time_ns()
    progress.record([bad], [])
    progress.take(epoch, 1, [], [(bad.key, looked_ns)], 1)
    (found,) = progress.failures()
    assert (found.tries, found.key, found.of) == (2, bad.key, f"{bytes(16).hex()}//p")
    progress.take(epoch, 2, [], [(bad.key, time.time_ns())], 1)
    assert progress.failures() == []


def test_what_is_not_there_any_more_may_fail_under_another_name(progress):
    """It failed there already, before its old name was looked at; or does later, until what was recorded is applied."""
    epoch = crawled(progress)

    def failing(name):
        of = failures.within(bytes(16), name.encode())
        return Failure(step="entry", gfid=None, path=name, code="io", error="e", of=of)

    progress.record([failing("old")], [], 200)
    progress.record([failing("new")], [], 500)
    progress.change(lambda db: failures.let_go(db, [failing("old").key]))
    progress.record([failing("newer")], [], 600)
    assert {each.path: each.first_ns for each in progress.failures()} == {"new": 200, "newer": 200}
    progress.record([], [failing(name).key for name in ("new", "newer")])
    progress.advance(epoch, 5, 900)
    assert progress.brick().stime_ns == 199
    wait_for(progress, 5)
    assert applied(progress) == 900


def test_reports_of_an_older_epoch_are_not_taken(progress):
    old = crawled(progress)
    bad = Failure(step="data", gfid="ab", path="p", code="io", error="e")
    new = progress.new_epoch(0)
    progress.take(new, 1, [bad], [], 1)
    progress.take(old, 7, [], [(bad.key, failures.NOW)], 1)
    assert progress.failure_count() == 1
    assert (progress.taken(old), progress.taken(new)) == (0, 1)


def test_the_ledger_gets_the_division_of_a_crawl_unit_that_is_durable(progress):
    """Done, and killed before the ledger knew: the twin divides what is left in another way."""
    epoch = progress.new_epoch(0)
    progress.begin_crawl(epoch, "c", 0, 1, 0, {"C:0": "[]", "C:0x": "not below it"})
    first = {"C:0.0": "a", "C:0.1": "b"}
    assert progress.crawled("c", "C:0", first) == first
    assert progress.crawled("c", "C:0.1", {"C:0.1.0": "below b"}) == {"C:0.1.0": "below b"}
    assert progress.crawled("c", "C:0", {"C:0.0": "b"}) == {"C:0.0": "a", "C:0.1.0": "below b"}


# ---- another holder


def test_what_another_holder_did_is_not_known_and_its_mark_counts(progress):
    epoch = crawled(progress, 1000)
    progress.advance(epoch, 7, 2000)
    assert progress.begin_crawl(epoch, "d", 7, 2500, 0, {"C:0": "[]"})
    progress.superseded()
    brick = progress.brick()
    assert (brick.complete, brick.crawl, brick.front_ns, brick.stime_ns) == (False, None, 1, 2000)
    assert not progress.frontier()
    progress.inherit(5000, 4000)
    brick = progress.brick()
    assert (brick.front_ns, brick.stime_ns) == (4000, 5000)
    # Nothing moves it until all was compared, and then never back.
    epoch = progress.new_epoch(0)
    progress.advance(epoch, 9, 9000)
    assert progress.brick().stime_ns == 5000
    assert progress.begin_crawl(epoch, "e", 9, 4500, 4000, {"C:0": "[]"})
    progress.record([failure()], [], progress.brick().stime_ns + 1)
    progress.crawled("e", "C:0", {})
    progress.end_crawl(epoch, "e", recorded=False)
    assert progress.brick().stime_ns == 5000
    progress.record([], [failure().key])
    assert progress.brick().stime_ns == 9000


def test_an_older_mark_of_another_holder_moves_nothing_back(progress):
    crawled(progress, 1000)
    progress.superseded()
    progress.inherit(500, 400)
    assert progress.brick().stime_ns == 1000
