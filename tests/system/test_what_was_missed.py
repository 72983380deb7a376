"""What a look has missed, and what may go wrong until it was found: each was a defect of an earlier design."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.system.hooks import hook
from tests.system.test_deletes import settings
from tests.system.test_lost_ledger import UNHELPED
from tests.system.test_moved_while_looked_at import (
    AWAITED,
    BY_CRAWL,
    BY_RECORD,
    Scene,
    is_ahead,
    mark_after_now,
)

# What was missed was found, and is listed; what is below it moves in that moment. And nobody answers who wants to look for that.
BELOW = """
once = tasks.entry._list

def again(work, observer, gfid, path):
    if path == b"new/below/deep" and os.path.exists({again!r}):
        os.rename({root!r} + "/new", {root!r} + "/newer")
        os.unlink({again!r})
    return once(work, observer, gfid, path)

tasks.entry._list = again

import scheduler.settle
called = scheduler.settle.agent_call

def away(store, op, **asked):
    if op == "look" and asked["names"] == ["deep"] and os.path.exists({away!r}):
        raise scheduler.settle.AgentUnreachable("no agent answers")
    return called(store, op, **asked)

scheduler.settle.agent_call = away
"""


@pytest.mark.slow
def test_what_is_below_what_was_missed_is_as_old(place, tmp_path):
    away = tmp_path / "away"
    away.touch()
    scene = Scene(place, tmp_path, BY_RECORD, BELOW + UNHELPED, away=str(away))
    with place.run(python_path=scene.path) as run:
        run.wait_idle()
        scene.again.write_text("1")
        at_ns = scene.come_from_outside(run)
        ahead = is_ahead(run, at_ns, lambda: scene.arrived("old", "new", "newer"), 25)
        assert not scene.again.exists()
        assert not ahead


# A directory in what was missed cannot be read, when it is looked for again.
UNREADABLE = """
once = tasks.entry._list

def unreadable(work, observer, gfid, path):
    if path == b"new/below/deep":
        observer.fail("entry", path, OSError(5, "Input/output error"))
        return []
    return once(work, observer, gfid, path)

tasks.entry._list = unreadable
"""


@pytest.mark.slow
def test_what_fails_of_what_was_missed_is_as_old(place, tmp_path):
    scene = Scene(place, tmp_path, BY_RECORD, UNREADABLE + UNHELPED)
    with place.run(python_path=scene.path) as run:
        at_ns = scene.come_from_outside(run)
        assert not is_ahead(run, at_ns, lambda: scene.arrived("new"), 25)


# The link is lost when it is asked where a directory is by now: the unit is done once more.
REPEATED = """
asked = tasks.entry.where_now

def lost(work, observer, directories):
    if os.path.exists({lost!r}):
        os.unlink({lost!r})
        from replication.remote.errors import LinkLost
        raise LinkLost("the link is lost")
    return asked(work, observer, directories)

tasks.entry.where_now = lost
"""


@pytest.mark.slow
def test_a_unit_that_missed_something_is_repeated(place, tmp_path):
    lost = tmp_path / "lost"
    lost.touch()
    scene = Scene(place, tmp_path, BY_RECORD, REPEATED + UNHELPED, lost=str(lost))
    with place.run(python_path=scene.path) as run:
        scene.come_from_outside(run)
        mark_after_now(run, place)
        assert not lost.exists()
        assert scene.arrived("new")


@pytest.mark.slow
def test_what_is_gone_is_never_listed_where_deletions_are_ignored(place):
    """It stays on the secondary, unlisted since what it was in came back from outside."""
    (place.primary / "p" / "gone").mkdir(parents=True)
    (place.primary / "p" / "gone" / "file").write_text("x")
    assert place.once().process.returncode == 0
    settings(place, "ignore_deletes = true")
    with place.run() as run:
        run.wait_idle()
        shutil.rmtree(place.primary / "p" / "gone")
        mark_after_now(run, place)
        os.rename(place.primary / "p", place.base / "aside")
        mark_after_now(run, place)
        os.rename(place.base / "aside", place.primary / "p")
        mark_after_now(run, place)
        run.wait_idle()
        assert run.progress()["stime_ns"] == run.progress()["front_ns"]
        assert run.stop() == 0
    with place.run() as run:
        mark_after_now(run, place)


# When the crawl is to come to "was"; at the top it has been.
BEHIND = """
import time
import tasks.crawl
summarised = tasks.crawl._Walk._summarise

def away(self, gfid, path):
    if path == b"was" and os.path.exists({flag!r}):
        os.unlink({flag!r})
        open({root!r} + "/was/x/known", "w").close()
        time.sleep(1)
        os.rename({root!r} + "/was/x", {root!r} + "/x")
    return summarised(self, gfid, path)

tasks.crawl._Walk._summarise = away
"""


@pytest.mark.slow
def test_what_changed_in_a_gap_and_moves_behind_the_crawl(place, tmp_path):
    """The changelog tells of the rename, and of nothing that happened in the gap."""
    (place.primary / "was" / "x").mkdir(parents=True)
    file = place.primary / "was" / "x" / "file"
    file.write_text("content")
    with place.run() as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        run.wait_same()
        run.wait_idle()
        assert run.stop() == 0
    file.write_text("changed while nobody recorded")
    flag = tmp_path / "flag"
    flag.touch()
    code = (AWAITED + BEHIND).format(flag=str(flag), root=str(place.primary))
    with place.run(python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_for(lambda: not flag.exists(), "the crawl to come there")
        mark_after_now(run, place)
        run.wait_for(lambda: (place.secondary / "x").exists(), "the rename")
        assert (place.secondary / "x" / "file").read_text() == "changed while nobody recorded"


# A second scan that takes longer than is waited for, in small; nobody moves anything in it.
LONG = """
import scheduler.completion
scheduler.completion._FOLLOW_S = 5.0
ran = tasks.crawl._Walk.run

def long(self):
    if not os.path.exists({flag!r}):
        import time
        time.sleep(3)
    return ran(self)

tasks.crawl._Walk.run = long
import scheduler.crawl
settled = scheduler.crawl.settle_scanned

def late(ctx, epoch):
    import time
    time.sleep(1)
    settled(ctx, epoch)

scheduler.crawl.settle_scanned = late
"""


@pytest.mark.slow
def test_a_scan_that_takes_longer_than_what_moves_is_followed(place, tmp_path):
    scene = Scene(place, tmp_path, BY_CRAWL, AWAITED + LONG)
    scene.make("primary/old")
    scene.flag.touch()
    run = place.once("--change-detector", "scan", python_path=scene.path)
    assert not scene.flag.exists()
    assert scene.arrived("new")
    assert run.process.returncode == 0


REMOVED = """
import shutil
import tasks.crawl
crawl_opened = tasks.crawl._Walk._open

def removed(self, gfid, path):
    if path == {path!r} and os.path.exists({flag!r}):
        os.unlink({flag!r})
        {how}
    return crawl_opened(self, gfid, path)

tasks.crawl._Walk._open = removed
"""


@pytest.mark.slow
def test_a_directory_that_is_removed_during_a_scan_is_none_that_moves(place, tmp_path):
    (place.primary / "old" / "below").mkdir(parents=True)
    (place.primary / "old" / "below" / "file").write_text("x")
    (place.primary / "another").write_text("x")
    flag = tmp_path / "flag"
    flag.touch()
    how = f"shutil.rmtree({str(place.primary / 'old')!r})"
    code = (AWAITED + REMOVED).format(flag=str(flag), path=b"old/below", how=how)
    run = place.once("--change-detector", "scan", timeout=150, python_path=hook(tmp_path, "tasks.unit", code))
    assert not flag.exists()
    assert run.process.returncode == 0, run.report()


# 20,000 files are looked for at once at the end of a crawl, and 100,000 keys of failures are looked at: in small.
SMALL = """
import scheduler.crawl
scheduler.crawl._DIRTY_MOST = 5
from replication.progress import Progress
Progress.failing.__defaults__ = (20,)
"""


@pytest.mark.slow
def test_many_files_are_moved_away_while_a_crawl_after_a_gap_comes_to_them(place, tmp_path):
    (place.primary / "old" / "below").mkdir(parents=True)
    (place.primary / "another").write_text("x")
    for n in range(60):
        (place.primary / "old" / "below" / f"f{n}").write_text(str(n))
    assert place.once().process.returncode == 0
    with place.run() as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        run.wait_idle()
        assert run.stop() == 0
    flag = tmp_path / "flag"
    flag.touch()
    how = f"os.rename({str(place.primary / 'old')!r}, {str(place.base / 'aside')!r})"
    code = (AWAITED + SMALL + REMOVED).format(flag=str(flag), path=b"old/below", how=how)
    with place.run(python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_for(lambda: not flag.exists(), "the crawl to come there")
        mark_after_now(run, place)
