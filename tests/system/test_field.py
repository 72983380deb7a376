"""What hurts users of the programs that exist: each wound is a test here."""

from __future__ import annotations

import mmap
import os
import time

import pytest

from tests.judge import assert_same
from tests.system.trees import many_small_files


def test_a_storm_of_renames_over_the_same_names_is_over_soon(place):
    """100 times `cp -f` and `mv -f` over the same 100 names: one observation each, not one per operation."""
    with place.run() as run:
        run.wait_idle()
        for turn in range(100):
            for number in range(100):
                aside = place.primary / f"n{number}.new"
                aside.write_bytes(b"%d %d" % (turn, number) * 20)
                os.replace(aside, place.primary / f"n{number}")
        run.wait_same(30)
    assert_same(place.primary, place.secondary)


@pytest.mark.slow
def test_churn_while_stopped_collapses(place):
    with place.run() as run:
        run.wait_idle()
        assert run.stop() == 0
    for turn in range(50):
        for number in range(40):
            path = place.primary / f"f{number}"
            path.write_bytes(os.urandom(1000))
            if turn % 2 == 0 or number % 2:
                path.unlink()
    with place.run() as run:
        run.wait_same(30)
        run.wait_idle()
        assert run.counters()["files"] <= 20 + 5
    assert_same(place.primary, place.secondary)


def test_a_hot_large_file_is_not_sent_over_and_over(place):
    """Written to for seconds, it is sent a few times, not once for each write; and at rest it is right."""
    path = place.primary / "hot"
    path.write_bytes(os.urandom(8 << 20))
    with place.run("--sync-method", "stream") as run:
        run.wait_idle()
        with open(path, "r+b") as file:
            for turn in range(200):
                file.seek(turn * 1000)
                file.write(os.urandom(500))
                file.flush()
                time.sleep(0.02)
        run.wait_same(30)
        assert run.counters()["bytes_sent"] < 40 * (8 << 20)
    assert_same(place.primary, place.secondary)


def test_a_file_moved_in_with_an_old_time_is_seen(place):
    with place.run() as run:
        run.wait_idle()
        outside = place.base / "outside"
        outside.write_text("old")
        os.utime(outside, (1, 1))
        os.rename(outside, place.primary / "old")
        run.wait_same(15)


def test_changes_while_the_secondary_is_away_arrive_when_it_is_back(place):
    many_small_files(place.primary, 50, 5)
    with place.run() as run:
        run.wait_idle()
    os.rename(place.secondary, place.base / "away")
    os.symlink("/nonexistent", place.secondary)
    (place.primary / "d1" / "f1").write_text("changed meanwhile")
    failed = place.once()
    assert failed.process.returncode not in (0, 3)
    os.unlink(place.secondary)
    os.rename(place.base / "away", place.secondary)
    assert place.once().process.returncode == 0
    assert_same(place.primary, place.secondary)


def test_foreign_things_in_the_way_are_kept_aside_and_what_is_ours_is_put_back(place):
    many_small_files(place.primary, 20, 2)
    with place.run() as run:
        run.wait_idle()
        (place.secondary / "d0" / "new").write_text("precious")
        (place.primary / "d0" / "new").write_text("from the primary")
        run.wait_same(20)
        kept = [p.read_text() for p in (place.secondary / ".seamark" / "displaced").rglob("*") if p.is_file()]
        assert "precious" in kept


@pytest.mark.slow
def test_a_directory_of_many_names_made_and_removed(place):
    with place.run() as run:
        run.wait_idle()
        crowd = place.primary / "crowd"
        crowd.mkdir()
        for number in range(8000):
            (crowd / f"name {number}").touch()
        run.wait_same(40)
        for number in range(8000):
            (crowd / f"name {number}").unlink()
        run.wait_same(40)
    assert_same(place.primary, place.secondary)


def test_a_store_through_mmap_that_moves_no_time_arrives(place):
    """The first store dirties the page; the second changes no time at all, and only closing is reported."""
    path = place.primary / "mapped"
    path.write_bytes(bytes(8192))
    with place.run() as run:
        run.wait_idle()
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[:2] = b"v0"
            os.utime(file.fileno(), ns=(1, path.stat().st_mtime_ns))  # so that v0 is looked at
            time.sleep(1.5)
            mapped[:2] = b"v1"
        run.wait_same(20)


def test_files_moved_as_soon_as_they_are_written_all_arrive_once(place):
    """Extract into a directory, rename it at once: --once must not end before their content is there."""
    with place.run() as run:
        run.wait_idle()
        for turn in range(10):
            many_small_files(place.primary / "tmp", 200, 4, seed=turn)
            os.rename(place.primary / "tmp", place.primary / f"final {turn}")
        run.wait_same(40)
        run.wait_idle(40)
        # A file that was not where it was to be for too long is a failure until it is tried again.
        run.wait_for(lambda: run.status["failures"] == 0, "an end of all failures")
    assert_same(place.primary, place.secondary)
