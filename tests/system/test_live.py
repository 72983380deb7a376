"""A running session: what changes on the primary arrives, whatever it is."""

from __future__ import annotations

import os
import shutil
import time

from tests.judge import assert_same
from tests.system.trees import every_kind_of_thing, many_small_files


def test_changes_arrive_while_it_runs(place):
    many_small_files(place.primary, 100, 5)
    p = place.primary
    with place.run() as run:
        run.wait_idle()
        every_kind_of_thing(p / "things" if (p / "things").mkdir() is None else p)
        many_small_files(p / "new", 1500, 20, seed=2)
        os.rename(p / "d0", p / "renamed")
        shutil.rmtree(p / "d1")
        os.rename(p / "d2" / "f2", p / "d3" / "over")
        (p / "d3" / "f3").write_bytes(b"changed")
        os.truncate(p / "d4" / "f4", 10)
        with open(p / "d4" / "f9", "ab") as file:
            file.write(b"appended")
        os.link(p / "d4" / "f14", p / "linked")
        os.rmdir(p / "things" / "empty dir")
        (p / "things" / "empty dir").write_text("now a file")
        run.wait_same()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def test_swaps_and_moves_into_one_another(place):
    p = place.primary
    many_small_files(p, 40, 4)
    with place.run() as run:
        run.wait_idle()
        for _ in range(3):
            os.rename(p / "d0", p / "x")
            os.rename(p / "d1", p / "d0")
            os.rename(p / "x", p / "d1")
        os.rename(p / "d2", p / "d3" / "inside")
        os.rename(p / "d3" / "inside", p / "out")
        shutil.rmtree(p / "d3")
        os.rename(p / "d0" / "f1", p / "d1" / "f1")
        os.rename(p / "d1" / "f0", p / "d0" / "f0")
        run.wait_same()
    assert_same(place.primary, place.secondary)


def test_it_goes_on_where_it_was(place):
    p = place.primary
    many_small_files(p, 60, 3)
    with place.run() as run:
        run.wait_idle()
        assert run.stop() == 0
    (p / "d0" / "while it was not running").write_text("new")
    shutil.rmtree(p / "d1")
    os.rename(p / "d2", p / "d9")
    with place.run() as run:
        run.wait_idle()
        run.wait_same()
        (p / "later").write_text("live")
        run.wait_same()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def test_one_hundred_thousand_times_nothing_is_sent_twice_for_renames(place):
    """A renamed directory costs no data: bytes sent stay what they were."""
    many_small_files(place.primary / "dir", 400, 4)
    with place.run() as run:
        run.wait_idle()
        before = run.status["bytes_done"]
        os.rename(place.primary / "dir", place.primary / "other")
        run.wait_same()
        time.sleep(0.6)
        assert run.status["bytes_done"] == before


def test_scan_mode_needs_no_recorder(place):
    many_small_files(place.primary, 60, 3)
    with place.run("--change-detector", "scan") as run:
        run.wait_idle()
        (place.primary / "d0" / "new").write_text("x")
        os.rename(place.primary / "d1", place.primary / "d7")
        shutil.rmtree(place.primary / "d2")
        run.wait_same()
    assert_same(place.primary, place.secondary)
