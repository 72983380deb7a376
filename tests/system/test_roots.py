"""What stands on both roots, and what a changelog is that somebody took away."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.judge import assert_same
from tests.system.trees import many_small_files


def marks(root):
    found = {}
    for name in os.listxattr(root):
        if "seamark" in name and name.endswith(".stime"):
            found[name] = json.loads(os.getxattr(root, name))
    return found


@pytest.mark.slow
def test_marks_that_a_kill_left_apart_come_together_at_the_next_start(place):
    (place.primary / "a").write_text("a")
    assert place.once().process.returncode == 0
    before = marks(place.secondary)
    assert before == marks(place.primary)
    with place.run(env={"SEAMARK_FAULT": "mark:1"}) as run:
        run.wait_for(lambda: marks(place.primary) != before, "the mark on the primary")
        run.kill()
    assert marks(place.secondary) == before
    with place.run() as run:
        run.wait_for(lambda: marks(place.secondary) == marks(place.primary), "both to be the same")
        assert run.stop() == 0
    assert marks(place.secondary) != before
    assert_same(place.primary, place.secondary)


@pytest.mark.slow
def test_a_changelog_that_is_lost_in_the_middle_of_a_crawl(place):
    p = place.primary
    many_small_files(p, 200, 4)
    with place.run() as run:
        run.wait_idle()
        for n in range(30):
            (p / "d0" / f"more{n}").write_text("x")
            run.wait_for(lambda n=n: (place.secondary / "d0" / f"more{n}").exists(), "it")
        assert run.stop() == 0
    # A gap has the next run begin a crawl, which a limit keeps from ending.
    (path,) = place.state.glob("sessions/*/session.toml")
    kept = path.read_text()
    many_small_files(p / "new", 400, 4)
    path.write_text(kept + 'bandwidth = "16K"\n')
    with place.run() as run:
        run.wait_for(lambda: run.progress()["crawl"] is not None, "a crawl")
        position = run.progress()["crawl_position"]
        run.kill()
    assert position > 10
    path.write_text(kept)
    for changelog in place.state.glob("sessions/*/changelog"):
        shutil.rmtree(changelog.resolve())
    with place.run() as run:
        run.wait_for(
            lambda: run.progress()["complete"] and run.progress()["crawl"] is None, "the end of a crawl", 120
        )
        run.wait_idle()
        assert run.progress()["front"] < position
        (p / "later").write_text("later")
        run.wait_same()
        assert run.stop() == 0
    assert_same(p, place.secondary)
