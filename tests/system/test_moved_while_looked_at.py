"""Something moves while a walk looks at the tree: the mark waits until it was looked at where it is by now."""

from __future__ import annotations

import os
import signal
import sqlite3
import time

import pytest

from replication import unsettled
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

# It moves once more when it is to be listed there, and it takes the recorder some seconds to say so.
TWICE = """
once = tasks.entry._list

def twice(work, observer, gfid, path):
    if path == b"new/below" and os.path.exists({again!r}):
        os.rename({root!r} + "/new", {root!r} + "/newer")
        os.kill(int(open({again!r}).read()), signal.SIGSTOP)
        os.unlink({again!r})
    return once(work, observer, gfid, path)

tasks.entry._list = twice
"""

# From the moment at which a directory is to be looked for again the recorder does not answer, for as long as a file is there.
AWAY = """
import scheduler.settle
called = scheduler.settle.agent_call
gone = {begun}

def away(store, op, **asked):
    global gone
    gone = gone or op == "look"
    if gone and os.path.exists({away!r}):
        raise scheduler.settle.AgentUnreachable("no agent answers")
    return called(store, op, **asked)

scheduler.settle.agent_call = away
"""

# The changelog is not read for as long as a file is there.
WITHHELD = """
import scheduler.crawl
changelog = scheduler.crawl.Crawler._changelog

def withheld(self, standing):
    return "withheld" if os.path.exists({held!r}) else changelog(self, standing)

scheduler.crawl.Crawler._changelog = withheld
"""
BY_CRAWL = ("tasks.crawl", "_Walk._open", "self, gfid, path")
BY_RECORD = ("tasks.entry", "_list", "work, observer, gfid, path")


class Scene:
    """``old/NAME/deep/file``; what it is below is renamed to ``new`` when it is to be listed, once ``flag`` is there."""

    def __init__(self, place, tmp_path, looker, more="", name=b"below", **names):
        self.place, self.name, self.flag, self.again = place, name, tmp_path / "flag", tmp_path / "again"
        module, function, arguments = looker
        code = (MOVED + more).format(
            module=module, function=function, arguments=arguments, path=b"old/" + name, flag=str(self.flag),
            again=str(self.again), root=str(place.primary), **names,
        )  # fmt: skip
        self.path = hook(tmp_path, "tasks.unit", code)

    def make(self, top):
        directory = os.path.join(os.fsencode(self.place.base / top), self.name, b"deep")
        os.makedirs(directory)
        with open(os.path.join(directory, b"file"), "w", encoding="ascii") as file:
            file.write("content")

    def come_from_outside(self, run):
        """Returns the time at which it was renamed, or a little before (ns)."""
        self.make("outside")
        run.wait_same()
        run.wait_idle()
        self.flag.touch()
        os.rename(self.place.base / "outside", self.place.primary / "old")
        run.wait_for(lambda: not self.flag.exists(), "it to be listed")
        return (self.place.primary / "new" / "known").stat().st_ctime_ns

    def arrived(self, *tops):
        name = os.fsdecode(self.name)
        return any((self.place.secondary / top / name / "deep" / "file").exists() for top in tops)


def mark_after_now(run, place):
    late = place.primary / "late"
    late.touch()
    at_ns = late.stat().st_ctime_ns
    run.wait_for(lambda: run.progress()["stime_ns"] > at_ns, "the mark")


def is_ahead(run, at_ns, arrived, seconds):
    """Whether the mark is seen after ``at_ns`` while what is older has not arrived."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not arrived():
        if run.progress()["stime_ns"] > at_ns:
            time.sleep(0.05)
            if not arrived():
                return True
        time.sleep(0.005)
    return False


def end(run, place):
    run.wait_same()
    assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def test_a_directory_that_a_crawl_finds_no_more(place, tmp_path):
    """No record names what is below what was renamed."""
    scene = Scene(place, tmp_path, BY_CRAWL, AWAITED + UNHELPED)
    scene.make("primary/old")
    scene.flag.touch()
    with place.run(python_path=scene.path) as run:
        run.wait_for(lambda: not scene.flag.exists(), "the crawl to come there")
        mark_after_now(run, place)
        assert scene.arrived("new")
        end(run, place)


def test_a_directory_that_came_from_outside_and_is_found_no_more(place, tmp_path):
    """Listed because of a record; and the record of what it is called by now is in the next segment."""
    scene = Scene(place, tmp_path, BY_RECORD, UNHELPED)
    with place.run(python_path=scene.path) as run:
        scene.come_from_outside(run)
        mark_after_now(run, place)
        assert scene.arrived("new")
        end(run, place)


@pytest.mark.slow
def test_a_name_that_is_not_utf8(place, tmp_path):
    scene = Scene(place, tmp_path, BY_RECORD, name=b"bel\xffow")
    with place.run(python_path=scene.path) as run:
        scene.come_from_outside(run)
        end(run, place)


@pytest.mark.slow
def test_the_recorder_is_away_when_a_directory_is_to_be_looked_for(place, tmp_path):
    """It was asked to have it listed, in vain."""
    away = tmp_path / "away"
    away.touch()
    scene = Scene(place, tmp_path, BY_RECORD, UNHELPED + AWAY, begun=False, away=str(away))
    with place.run(python_path=scene.path) as run:
        at_ns = scene.come_from_outside(run)
        ahead = is_ahead(run, at_ns, lambda: scene.arrived("new"), 15)
        away.unlink()
        assert not ahead
        end(run, place)


@pytest.mark.slow
def test_it_moves_again_when_it_is_to_be_listed(place, tmp_path):
    """What is in it is as old as when it was missed first, not as the record that had it looked for."""
    scene = Scene(place, tmp_path, BY_RECORD, TWICE)
    with place.run(python_path=scene.path) as run:
        run.wait_idle()
        recorder = run.pids("agent")
        scene.again.write_text(str(recorder))
        at_ns = scene.come_from_outside(run)
        ahead = is_ahead(run, at_ns, lambda: scene.arrived("old", "new", "newer"), 10)
        os.kill(recorder, signal.SIGCONT)
        assert not ahead
        end(run, place)
        assert not scene.again.exists()


@pytest.mark.slow
def test_a_scan_that_ends_by_itself_looks_again(place, tmp_path):
    """Nobody records what moved: what a scan knows that it missed another one has to find."""
    scene = Scene(place, tmp_path, BY_CRAWL, AWAITED)
    scene.make("primary/old")
    assert place.once("--change-detector", "scan").process.returncode == 0
    file = place.primary / "old" / "below" / "deep" / "file"
    file.write_text("another content")
    scene.flag.touch()
    run = place.once("--change-detector", "scan", python_path=scene.path)
    assert not scene.flag.exists()
    assert run.process.returncode == 0
    assert_same(place.primary, place.secondary)


@pytest.mark.slow
def test_the_lag_says_that_the_mark_waits(place, tmp_path):
    """Changes that are newer than what may have been missed are applied meanwhile."""
    away = tmp_path / "away"
    path = hook(tmp_path, "tasks.unit", AWAY.format(begun=True, away=str(away)))
    with place.run(python_path=path) as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        away.touch()  # it is not told where the changelog stands
        (progress,) = run.state.glob("sessions/*/progress.sqlite")
        with sqlite3.connect(progress) as db:
            (mark,) = db.execute("SELECT stime_ns FROM brick").fetchone()
            unsettled.doubt(db, mark + 1)
        db.close()
        begin, until = len(run.messages), time.monotonic() + 12
        while time.monotonic() < until:
            (place.primary / f"f{time.monotonic_ns()}").write_text("content")
            time.sleep(0.02)
        said = [m for m in run.messages[begin:] if m.get("message_type") == "status"]
        assert [
            m["time"] - m["stime"] - m["lag_s"] for m in said if m["time"] - m["stime"] - m["lag_s"] > 5
        ] == []
        away.unlink()
        end(run, place)


BEHIND_ITS_BACK = """
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
    code = (BEHIND_ITS_BACK + WITHHELD).format(flag=str(flag), held=str(held), root=str(place.primary))
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
        end(run, place)
