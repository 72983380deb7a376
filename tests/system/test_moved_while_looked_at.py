"""Something moves while a walk looks at the tree: the mark waits until it was looked at where it is by now."""

from __future__ import annotations

import os

import pytest

from tests.judge import assert_same
from tests.system.hooks import hook
from tests.system.test_lost_ledger import UNHELPED

# Once something is to be listed at a path: it moves just before. (What it is in is known to the recorder by then, so that it
# need not have all of it listed when it moves.)
MOVED = """
import time
import {module}
opened = {module}.{function}

def moved({arguments}):
    if path == {path!r} and os.path.exists({flag!r}):
        open({root!r} + "/old/known", "w").close()
        time.sleep(1)
        os.rename({root!r} + "/old", {root!r} + "/new")
        os.unlink({flag!r})
    return opened({arguments})

{module}.{function} = moved
"""

# So that what is above it is known to be new, and is listed at once.
AWAITED = """
import tasks.crawl
answers = tasks.crawl._Walk._answers
tasks.crawl._Walk._answers = lambda self, leave: answers(self, 0)
"""

# The changelog is not read for as long as a file is there.
WITHHELD = """
import scheduler.crawl
changelog = scheduler.crawl.Crawler._changelog

def withheld(self, standing):
    return "withheld" if os.path.exists({held!r}) else changelog(self, standing)

scheduler.crawl.Crawler._changelog = withheld
"""


@pytest.fixture
def below(place):
    """Of a tree with a directory in which there is more than one level."""

    def make(top):
        directory = place.base / top / "below"
        (directory / "deep").mkdir(parents=True)
        (directory / "deep" / "file").write_bytes(b"content")
        return directory

    return make


def mark_after_now(run, place):
    late = place.primary / "late"
    late.touch()
    at_ns = late.stat().st_ctime_ns
    run.wait_for(lambda: run.progress()["stime_ns"] > at_ns, "the mark")


def moved(tmp_path, place, module, function, arguments):
    """A hook that moves ``old`` when ``old/below`` is to be listed, and the file that says that it has not yet."""
    flag = tmp_path / "flag"
    text = (MOVED + UNHELPED).format(
        module=module, function=function, arguments=arguments, path=b"old/below", flag=str(flag),
        root=str(place.primary), held=str(tmp_path / "held"),
    )  # fmt: skip
    return flag, text


def test_a_directory_that_a_crawl_finds_no_more(place, tmp_path, below):
    """No record names what is below what was renamed."""
    below("primary/old")
    flag, code = moved(tmp_path, place, "tasks.crawl", "_Walk._open", "self, gfid, path")
    flag.touch()
    with place.run(python_path=hook(tmp_path, "tasks.unit", code + AWAITED)) as run:
        run.wait_for(lambda: not flag.exists(), "the crawl to come there")
        mark_after_now(run, place)
        assert (place.secondary / "new" / "below" / "deep" / "file").exists()
        run.wait_same()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def test_a_directory_that_came_from_outside_and_is_found_no_more(place, tmp_path, below):
    """Listed because of a record; and the record of what it is called by now is in the next segment."""
    flag, code = moved(tmp_path, place, "tasks.entry", "_list", "work, observer, gfid, path")
    (place.primary / "first").touch()
    below("outside")
    with place.run(python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_same()
        flag.touch()
        os.rename(place.base / "outside", place.primary / "old")
        run.wait_for(lambda: not flag.exists(), "it to be listed")
        mark_after_now(run, place)
        assert (place.secondary / "new" / "below" / "deep" / "file").exists()
        run.wait_same()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


AWAY = """
import tasks.crawl
observed = tasks.crawl._Walk._observe

def away(self, gfid, path, **how):
    if path == b"was" and os.path.exists({flag!r}):
        os.unlink({flag!r})
        os.rename({root!r} + "/was/x", {root!r} + "/x")
    return observed(self, gfid, path, **how)

tasks.crawl._Walk._observe = away
"""


def test_what_moves_to_where_the_crawl_has_been(place, tmp_path):
    """The crawl never sees it: there is no mark before the changelog has told of it."""
    (place.primary / "was" / "x").mkdir(parents=True)
    (place.primary / "was" / "x" / "file").write_bytes(b"content")
    flag, held = tmp_path / "flag", tmp_path / "held"
    code = (AWAY + WITHHELD).format(flag=str(flag), held=str(held), root=str(place.primary))
    flag.touch()
    held.touch()
    with place.run(python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_for(lambda: not flag.exists(), "the crawl to come there")
        run.wait_for(lambda: run.progress()["complete"], "the crawl to end")
        assert not (place.secondary / "x").exists()
        assert run.progress()["stime_ns"] == 0
        assert run.status["lag_s"] is None
        held.unlink()
        run.wait_for(lambda: run.progress()["stime_ns"], "the mark")
        assert (place.secondary / "x" / "file").exists()
        run.wait_same()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)
