"""What the mark had passed, in a schedule of renames, kills and a recorder that comes late: it waits for each."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.filesystems import filesystem
from tests.system.hooks import hook
from tests.system.test_lost_ledger import UNHELPED
from tests.system.test_moved_while_looked_at import (
    AWAITED,
    BY_RECORD,
    WITHHELD,
    Scene,
    end,
    is_ahead,
    mark_after_now,
)
from tests.system.test_renamed_above import UNREADABLE

SIZE = 20_000_000

# For the hooks: a recorder that is not running sees nothing of what happens next, until it is.
FREEZE = """
import signal
import time

def freeze(file):
    pid = int(open(file).read())
    os.kill(pid, signal.SIGSTOP)
    while "T (stopped)" not in open("/proc/%d/status" % pid).read():
        time.sleep(0.01)
"""


def freeze(pid):
    os.kill(pid, signal.SIGSTOP)
    while "T (stopped)" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.01)


def is_there(place, name, size=0):
    """Whether it has come, under any name; in limbo, too."""
    return any(
        os.path.getsize(os.path.join(at, name)) >= size
        for at, _, files in os.walk(place.secondary)
        if name in files
    )


def come(scene, run):
    """``old`` comes from outside, and moves when it is looked at; the time at which it came (ns)."""
    scene.make("outside")
    run.wait_same()
    run.wait_idle()
    scene.flag.touch()
    os.rename(scene.place.base / "outside", scene.place.primary / "old")
    at_ns = (scene.place.primary / "old").stat().st_ctime_ns
    run.wait_for(lambda: not scene.flag.exists(), "it to be listed")
    return at_ns


@pytest.mark.slow
def test_what_fails_is_as_old_as_it_is_however_late_the_recorder_comes(place, tmp_path):
    """When it opened a segment says little of when what is in it happened."""
    flag = tmp_path / "flag"
    flag.touch()
    hooked = hook(tmp_path, "replication.volume.directory", UNREADABLE.format(flag=str(flag)))
    # (A file system of its own: where something always happens a segment is always open.)
    with filesystem("tmpfs", place.primary, mib=4), place.run(python_path=hooked) as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        run.wait_idle()
        time.sleep(3)  # (the mark was written to the root meanwhile, which is seen as well)
        recorder = run.pids("agent")
        freeze(recorder)
        (place.primary / "bad").write_text("content")
        at_ns = (place.primary / "bad").stat().st_ctime_ns
        time.sleep(3)
        os.kill(recorder, signal.SIGCONT)
        run.wait_for(lambda: run.status["failures"] == 1, "a failure")
        late_ns = time.time_ns()
        run.wait_for(lambda: run.progress()["front_ns"] > late_ns, "the front")
        assert run.progress()["stime_ns"] < at_ns
        flag.unlink()
        end(run, place)


WITHOUT_HANDLES = """
import replication.volume.directory

def open_dir_by_handle(self, handle):
    raise PermissionError(1, "as for a user")

replication.volume.directory.DirectoryVolume.open_dir_by_handle = open_dir_by_handle
"""


def test_a_new_directory_that_has_another_name_when_it_is_looked_at(place, tmp_path):
    """What is in it was recorded with it; its new name is in a later segment, and no handle may be opened."""
    held = tmp_path / "held"
    code = (WITHHELD + WITHOUT_HANDLES).format(held=str(held)) + UNHELPED
    with place.run(python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        run.wait_idle()
        held.touch()
        time.sleep(1)
        below = place.primary / "tmp" / "below"
        below.mkdir(parents=True)
        (below / "payload").write_text("content")
        at_ns = (below / "payload").stat().st_ctime_ns
        time.sleep(3)  # until it is recorded
        recorder = run.pids("agent")
        freeze(recorder)
        (place.primary / "tmp").rename(place.primary / "final")
        held.unlink()
        ahead = is_ahead(run, at_ns, lambda: is_there(place, "payload"), 5)
        os.kill(recorder, signal.SIGCONT)
        assert not ahead
        end(run, place)


# What was missed is found, and is to be listed: what is in it leaves it just before. It is known up to where it was to be applied.
OUT = """
once = tasks.entry._list

def out(work, observer, gfid, path):
    if path == b"new/below" and os.path.exists({again!r}):
        from replication import unsettled
        while any(row.upto is None for row in work.ctx.progress.look(unsettled.rows)):
            work.alive()
            time.sleep(0.01)
        freeze({again!r})
        os.rename({root!r} + "/new/below/deep", {root!r} + "/deep")
        os.unlink({again!r})
    return once(work, observer, gfid, path)

tasks.entry._list = out
"""


@pytest.mark.slow
def test_what_leaves_what_was_missed_before_that_is_listed(place, tmp_path):
    scene = Scene(place, tmp_path, BY_RECORD, FREEZE + OUT + UNHELPED)
    with place.run(python_path=scene.path) as run:
        run.wait_idle()
        recorder = run.pids("agent")
        scene.again.write_text(str(recorder))
        at_ns = come(scene, run)
        ahead = is_ahead(run, at_ns, lambda: is_there(place, "file"), 10)
        os.kill(recorder, signal.SIGCONT)
        assert not scene.again.exists()
        assert not ahead
        end(run, place)


# It is told of, and what it holds is to be looked for, when the process is killed that alone knows that it was to be listed.
KILLED = """
import tasks.whereabouts
said = tasks.whereabouts._said_by

def killed(volume, gfid):
    if os.path.exists({lost!r}):
        os.unlink({lost!r})
        os.kill(os.getpid(), signal.SIGKILL)
    return said(volume, gfid)

tasks.whereabouts._said_by = killed
listed = tasks.entry._list

def frozen(work, observer, gfid, path):
    if path == b"old/below" and os.path.exists({lost!r}):
        freeze({lost!r})
    return listed(work, observer, gfid, path)

tasks.entry._list = frozen
"""


@pytest.mark.slow
def test_a_unit_that_has_told_of_a_directory_is_killed(place, tmp_path):
    lost = tmp_path / "lost"
    scene = Scene(place, tmp_path, BY_RECORD, FREEZE + KILLED + UNHELPED, lost=str(lost))
    with place.run(python_path=scene.path) as run:
        run.wait_idle()
        recorder = run.pids("agent")
        lost.write_text(str(recorder))
        at_ns = come(scene, run)
        ahead = is_ahead(run, at_ns, lambda: is_there(place, "file"), 10)
        os.kill(recorder, signal.SIGCONT)
        assert not lost.exists()
        assert not ahead
        mark_after_now(run, place)
        assert scene.arrived("new")
        end(run, place)


UNSENT = """
import tasks.entry
observed = tasks.entry._observe_part

def lost(work, todo, segment):
    found = observed(work, todo, segment)
    if os.path.exists({lost!r}) and os.path.exists({root!r} + "/old"):
        freeze({lost!r})
        os.rename({root!r} + "/old", {root!r} + "/new")
        os.unlink({lost!r})
        {too}
        os.kill(os.getpid(), signal.SIGKILL)
    return found

tasks.entry._observe_part = lost
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "too", ["pass", "work.ctx.ledger.redis.flushall()"], ids=["alone", "and redis is lost"]
)
def test_a_unit_that_has_told_of_a_file_is_killed(place, tmp_path, too):
    """Nobody else knew that its content is wanted; and it has another name when the unit is repeated."""
    lost = tmp_path / "lost"
    code = FREEZE + UNSENT.format(lost=str(lost), too=too, root=str(place.primary)) + UNHELPED
    with place.run("--sync-method", "tar", python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        run.wait_idle()
        recorder = run.pids("agent")
        lost.write_text(str(recorder))
        (place.base / "outside").mkdir()
        (place.base / "outside" / "file").write_bytes(os.urandom(SIZE))
        os.rename(place.base / "outside", place.primary / "old")
        at_ns = time.time_ns()
        run.wait_for(lambda: not lost.exists(), "it to be lost")
        ahead = is_ahead(run, at_ns, lambda: is_there(place, "file", SIZE), 10)
        os.kill(recorder, signal.SIGCONT)
        assert not ahead
        mark_after_now(run, place)
        assert (place.secondary / "new" / "file").stat().st_size == SIZE
        end(run, place)


# What is missed is noted, and nobody answers who wants to look for it.
UNANSWERED = """
import scheduler.settle
called = scheduler.settle.agent_call

def away(store, op, **asked):
    if op == "look" and os.path.exists({away!r}):
        raise scheduler.settle.AgentUnreachable("no agent answers")
    return called(store, op, **asked)

scheduler.settle.agent_call = away
"""


# A crawl comes to what was missed, wherever that is by then, and it moves on just before what is in it is to be listed.
ONWARD = """
import tasks.crawl
crawl_opened = tasks.crawl._Walk._open

def onward(self, gfid, path):
    if path == b"newer/below/deep" and os.path.exists({again!r}):
        os.unlink({again!r})
        os.rename({root!r} + "/newer", {root!r} + "/newest")
    return crawl_opened(self, gfid, path)

tasks.crawl._Walk._open = onward
ran = tasks.crawl._Walk.run

def renamed(self):
    if os.path.exists({again!r}) and os.path.exists({root!r} + "/new"):
        os.rename({root!r} + "/new", {root!r} + "/newer")
    ran(self)

tasks.crawl._Walk.run = renamed
noted = tasks.crawl._Walk.note_vanished

def told(self):
    noted(self)
    if self._vanished:
        from replication import unsettled
        rows = self.work.ctx.progress.look(unsettled.rows)
        with open({said!r}, "w") as file:
            file.write(" ".join(str(row.since_ns) for row in rows))

tasks.crawl._Walk.note_vanished = told
"""


@pytest.mark.slow
def test_what_a_crawl_misses_of_what_was_missed_is_as_old(place, tmp_path):
    away, said = tmp_path / "away", tmp_path / "said"
    away.touch()
    scene = Scene(place, tmp_path, BY_RECORD, AWAITED + ONWARD + UNANSWERED, away=str(away), said=str(said))
    with place.run(python_path=scene.path) as run:
        run.wait_idle()
        come(scene, run)
        run.wait_for(lambda: (place.secondary / "new" / "below").exists(), "the rename")
        scene.again.touch()
        (progress,) = run.state.glob("sessions/*/progress.sqlite")
        with sqlite3.connect(progress) as db:
            db.execute("UPDATE brick SET scan_ns = 0")
        db.close()
        run.wait_for(said.exists, "a crawl to miss it")
        run.wait_for(said.read_text, "what it says of it")
        of_what_was_missed, of_what_is_in_it = said.read_text().split()
        assert of_what_is_in_it == of_what_was_missed
        away.unlink()
        end(run, place)


@pytest.mark.slow
def test_a_listed_directory_between_two_that_are_not(place, tmp_path):
    """If it leaves the upper one before that is listed no record leads to the lower one."""
    away = tmp_path / "away"
    away.touch()
    for name in ("upper/listed/lower/deep", "other/deep"):
        (place.primary / name).mkdir(parents=True)
    with place.run(
        python_path=hook(tmp_path, "tasks.unit", UNANSWERED.format(away=str(away)) + UNHELPED)
    ) as run:
        run.wait_same()
        run.wait_idle()
        with sqlite3.connect(place.secondary / ".seamark" / "index.sqlite") as db:
            names = (b"upper", b"lower", b"other", b"deep")
            for name in names:
                db.execute(
                    "UPDATE inode SET listed = 0 WHERE id IN (SELECT inode FROM entry WHERE name = ?)",
                    (name,),
                )
        db.close()
        with run.redis() as redis:
            redis.flushall()
        run.wait_for(lambda: run.progress()["epoch"] > 1, "a new epoch")
        (progress,) = run.state.glob("sessions/*/progress.sqlite")

        def noted():
            with sqlite3.connect(progress) as db:
                return {path for (path,) in db.execute("SELECT path FROM unsettled WHERE gfid <> ''")}

        run.wait_for(noted, "what is unlisted")
        assert noted() == {b"upper", b"upper/listed/lower", b"other"}
        away.unlink()
        end(run, place)


# What left it is missed in its turn, where it is by then; nobody answers who wants to look for that.
ON = """
once = tasks.entry._list

def on(work, observer, gfid, path):
    if path == b"new/below" and os.path.exists({again!r}):
        os.rename({root!r} + "/new/below/deep", {root!r} + "/c/deep")
        os.unlink({again!r})
    if path == b"c/deep" and os.path.exists({root!r} + "/c"):
        os.rename({root!r} + "/c", {root!r} + "/d")
    return once(work, observer, gfid, path)

tasks.entry._list = on

import scheduler.settle
called = scheduler.settle.agent_call

def away(store, op, **asked):
    if op == "look" and asked["names"] == ["deep"] and os.path.exists({away!r}):
        raise scheduler.settle.AgentUnreachable("no agent answers")
    return called(store, op, **asked)

scheduler.settle.agent_call = away
"""


@pytest.mark.slow
def test_what_leaves_what_was_missed_and_is_missed_itself(place, tmp_path):
    away = tmp_path / "away"
    away.touch()
    scene = Scene(place, tmp_path, BY_RECORD, ON + UNHELPED, away=str(away))
    (place.primary / "c").mkdir()
    with place.run(python_path=scene.path) as run:
        run.wait_idle()
        scene.again.write_text("1")
        at_ns = come(scene, run)
        ahead = is_ahead(run, at_ns, lambda: is_there(place, "file"), 20)
        assert not scene.again.exists()
        assert (place.primary / "d" / "deep").exists()
        assert not ahead
        away.unlink()
        end(run, place)
