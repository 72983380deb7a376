"""`seamark run A B --once`: the whole stack, judged by rsync and mtree."""

from __future__ import annotations

import json
import os
import shutil

from tests.judge import assert_same
from tests.system.trees import every_kind_of_thing, many_small_files


def test_every_kind_of_thing_arrives(place):
    every_kind_of_thing(place.primary)
    run = place.once()
    assert run.process.returncode == 0, run.report()
    assert_same(place.primary, place.secondary)


def test_a_second_run_brings_over_what_changed_meanwhile(place):
    every_kind_of_thing(place.primary)
    many_small_files(place.primary / "many", 300, 10)
    assert place.once().process.returncode == 0
    shutil.rmtree(place.primary / "many" / "d3")
    os.rename(place.primary / "many" / "d4", place.primary / "moved")
    (place.primary / "moved" / "f7").write_text("changed")
    (place.primary / "new").mkdir()
    (place.primary / "new" / "file").write_bytes(b"x" * 3_000_000)
    run = place.once()
    assert run.process.returncode == 0, run.report()
    assert_same(place.primary, place.secondary)


def test_nothing_is_sent_when_nothing_changed(place):
    many_small_files(place.primary, 200, 4)
    assert place.once().process.returncode == 0
    run = place.once()
    assert run.process.returncode == 0, run.report()
    assert run.status["files_done"] == 0
    assert_same(place.primary, place.secondary)


def test_the_mark_is_on_both_roots_when_it_ends(place):
    many_small_files(place.primary, 20, 2)
    assert place.once().process.returncode == 0
    marks = [
        [os.getxattr(root, name) for name in os.listxattr(root) if name.endswith(".stime")]
        for root in (place.primary, place.secondary)
    ]
    assert marks[0] == marks[1]
    assert json.loads(marks[0][0])["stime_ns"] > 0
