"""What the mark waits for is not let go of by what happens meanwhile: a hold, another name, another detector, a kill."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import time

import pytest

from tests.system.hooks import hook
from tests.system.test_deletes import settings
from tests.system.test_lost_ledger import UNHELPED
from tests.system.test_mark_and_moves import FREEZE, freeze, is_there
from tests.system.test_moved_while_looked_at import (
    BEHIND_ITS_BACK,
    BY_RECORD,
    WITHHELD,
    Scene,
    end,
    is_ahead,
    mark_after_now,
)


def unsettled_rows(run):
    """(gfid, since_ns, tries) of what the mark waits for."""
    return run.query("SELECT gfid, since_ns, tries FROM unsettled")


# Its new name is to be looked at, and it has another one by then, which is recorded after what is waited for.
AND_ON = """
import tasks.entry
looked = tasks.entry._look_at_records

def on(work, observer, segment, at):
    if os.path.exists({root!r} + "/new") and os.path.exists({again!r}):
        import time
        from replication import unsettled
        while any(row.upto is None for row in work.ctx.progress.look(unsettled.rows)):
            work.alive()
            time.sleep(0.01)
        freeze({again!r})
        os.rename({root!r} + "/new", {root!r} + "/newer")
        os.unlink({again!r})
    return looked(work, observer, segment, at)

tasks.entry._look_at_records = on
"""


@pytest.mark.parametrize(
    "setting", ['max_delete = "1"', pytest.param("ignore_deletes = true", marks=pytest.mark.slow)]
)
def test_what_was_missed_lies_below_a_name_that_is_held(place, tmp_path, setting):
    """The name is gone, and stays on the secondary: whether it is gone for good is not known before all until then is applied."""
    scene = Scene(place, tmp_path, BY_RECORD, FREEZE + AND_ON + UNHELPED)
    assert place.once().process.returncode == 0
    settings(place, setting)
    with place.run(python_path=scene.path) as run:
        run.wait_idle()
        recorder = run.pids("agent")
        scene.again.write_text(str(recorder))
        scene.come_from_outside(run)
        run.wait_for(lambda: not scene.again.exists(), "it to move on")
        run.wait_for(
            lambda: all(not gfid or tries for gfid, _, tries in unsettled_rows(run)), "it to be looked for"
        )
        os.kill(recorder, signal.SIGCONT)
        mark_after_now(run, place)
        assert scene.arrived("newer")
        end(run, place)


# A part of a segment has told of what is in a directory, and is killed before attributes are sent; that has another name by then.
UNDRESSED = """
import tasks.entry
tasks.entry._PART_S = tasks.entry._PART_MOST_S = 1
listed = tasks.entry._list

def slowly(*of):
    import time
    time.sleep(1)
    return listed(*of)

tasks.entry._list = slowly
observed = tasks.entry._observe_part

def killed(work, todo, segment):
    found = observed(work, todo, segment)
    if os.path.exists({flag!r}) and b"old/sub" in dict(tasks.entry.decode_dirs(todo["dirs"])).values():
        os.rename({root!r} + "/old", {root!r} + "/new")
        os.unlink({flag!r})
        os.kill(os.getpid(), signal.SIGKILL)
    return found

tasks.entry._observe_part = killed
"""


@pytest.mark.root
def test_attributes_that_only_a_killed_unit_knew_of(place, tmp_path):
    """Directories, empty files and what else has no content that would be missed."""
    flag = tmp_path / "flag"
    code = UNDRESSED.format(flag=str(flag), root=str(place.primary)) + UNHELPED
    outside = place.base / "outside"
    (outside / "sub" / "below").mkdir(parents=True)
    (outside / "sub" / "empty").touch()
    os.mkfifo(outside / "sub" / "fifo")
    names = {"below": "user.of", "empty": "user.of", "fifo": "trusted.of"}
    for name, attribute in names.items():
        os.setxattr(outside / "sub" / name, attribute, name.encode())
    with place.run(python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        run.wait_idle()
        flag.touch()
        os.rename(outside, place.primary / "old")
        run.wait_for(lambda: not flag.exists(), "the unit to be killed")
        mark_after_now(run, place)
        assert {
            name
            for name, attribute in names.items()
            if attribute in os.listxattr(place.secondary / "new" / "sub" / name)
        } == set(names)
        end(run, place)


# Recording is over from the moment at which a file is there; nor does any look at the whole tree begin.
REFUSED = """
import replication.agent
opened = replication.agent.open_recorder

def refused(*of):
    if os.path.exists({refused!r}):
        from replication.changelog.recorder import RecorderUnavailable
        raise RecorderUnavailable("no more groups")
    return opened(*of)

replication.agent.open_recorder = refused
begin = scheduler.crawl.Crawler._begin_hybrid

def later(self, standing, why, *, gap):
    return "withheld" if os.path.exists({refused!r}) else begin(self, standing, why, gap=gap)

scheduler.crawl.Crawler._begin_hybrid = later
"""


@pytest.mark.slow
def test_the_recorder_is_lost_before_what_moved_behind_a_crawl_is_applied(place, tmp_path):
    """Then the tree is scanned, again and again; until the first scan has ended nothing is known."""
    (place.primary / "was" / "x").mkdir(parents=True)
    (place.primary / "was" / "x" / "file").write_bytes(b"content")
    flag, held, refused = tmp_path / "flag", tmp_path / "held", tmp_path / "refused"
    code = (BEHIND_ITS_BACK + WITHHELD + REFUSED).format(
        flag=str(flag), held=str(held), refused=str(refused), root=str(place.primary)
    )
    flag.touch()
    held.touch()
    with place.run(python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_for(lambda: not flag.exists(), "the crawl to come there")
        run.wait_for(lambda: run.progress()["complete"], "the crawl to end")
        refused.touch()
        os.kill(run.pids("agent"), signal.SIGKILL)
        (detector,) = run.state.glob("sessions/*/detector")
        run.wait_for(lambda: detector.read_text() == "scan", "the scans to begin")
        assert not is_ahead(run, 0, lambda: (place.secondary / "x" / "file").exists(), 12)
        refused.unlink()
        run.wait_for(lambda: run.progress()["stime_ns"], "the mark")
        assert (place.secondary / "x" / "file").exists()
        end(run, place)


# All that is under way ends after a tick has begun.
OVERTAKEN = """
import time
import scheduler.crawl
changelog = scheduler.crawl.Crawler._changelog

def overtaken(self, standing):
    until = time.monotonic() + 2
    while standing.opened > self.ctx.ledger.forgotten() and time.monotonic() < until:
        time.sleep(0.01)
    return changelog(self, standing)

scheduler.crawl.Crawler._changelog = overtaken
opened = scheduler.crawl.open_batch

def noted(ctx, epoch, standing, manifest, units, says):
    done = opened(ctx, epoch, standing, manifest, units, says)
    if manifest["kind"] == "changelog":
        with open({said!r}, "a") as file:
            print(manifest["first"], manifest["last"], file=file)
    return done

scheduler.crawl.open_batch = noted
"""


def test_a_batch_that_ends_while_a_tick_begins_is_not_opened_again(place, tmp_path):
    said = tmp_path / "said"
    with place.run(python_path=hook(tmp_path, "tasks.unit", OVERTAKEN.format(said=str(said)))) as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        for number in range(5):
            (place.primary / f"f{number}").write_text("content")
            run.wait_for((place.secondary / f"f{number}").exists, "it")
        end(run, place)
    batches = [tuple(map(int, line.split())) for line in said.read_text().splitlines()]
    assert all(later[0] > earlier[1] for earlier, later in itertools.pairwise(batches)), batches


@pytest.mark.slow
def test_what_came_from_outside_has_another_name_when_it_is_looked_at(place, tmp_path):
    """What is in it is older than the rename; its new name is in a later segment, and nobody has seen it yet."""
    held = tmp_path / "held"
    code = WITHHELD.format(held=str(held)) + UNHELPED
    with place.run(python_path=hook(tmp_path, "tasks.unit", code)) as run:
        run.wait_for(lambda: run.status.get("stime"), "the mark")
        (place.base / "outside").mkdir()
        (place.base / "outside" / "payload").write_text("content")
        time.sleep(3)
        run.wait_idle()
        held.touch()
        time.sleep(1)
        os.rename(place.base / "outside", place.primary / "old")
        at_ns = (place.primary / "old").stat().st_ctime_ns
        time.sleep(3)
        recorder = run.pids("agent")
        freeze(recorder)
        (place.primary / "old").rename(place.primary / "new")
        held.unlink()
        ahead = is_ahead(run, at_ns, lambda: is_there(place, "payload"), 5)
        os.kill(recorder, signal.SIGCONT)
        assert not ahead
        mark_after_now(run, place)
        assert (place.secondary / "new" / "payload").read_text() == "content"
        end(run, place)


# While it is asked what is unlisted a unit that had told of something is begun again, and leaves a directory.
DOUBTED = """
import scheduler.settle
noted = scheduler.settle._note_unlisted

def again(ctx, epoch, since_ns):
    noted(ctx, epoch, since_ns)
    if os.path.exists({flag!r}):
        os.unlink({flag!r})
        from replication import unsettled
        gfid, _ = ctx.volume.identify(ctx.volume.root_fd, b"dir")
        ctx.secondary(epoch).client.unlist([gfid])
        ctx.progress.change(lambda db: unsettled.doubt(db, since_ns))

scheduler.settle._note_unlisted = again
"""


@pytest.mark.slow
def test_a_doubt_that_comes_while_an_earlier_one_is_settled(place, tmp_path):
    """Something lacks its content, too, so that what is recorded is waited for."""
    flag = tmp_path / "flag"
    (place.primary / "dir").mkdir()
    (place.primary / "file").write_text("content")
    with place.run(
        python_path=hook(tmp_path, "tasks.unit", DOUBTED.format(flag=str(flag)) + UNHELPED)
    ) as run:
        run.wait_same()
        run.wait_idle()
        with sqlite3.connect(place.secondary / ".seamark" / "index.sqlite") as db:
            db.execute(
                "UPDATE inode SET dirty = 1 WHERE id IN (SELECT inode FROM entry WHERE name = ?)", (b"file",)
            )
        flag.touch()
        with run.redis() as redis:
            redis.flushall()
        run.wait_for(lambda: not flag.exists(), "the doubt")
        mark_after_now(run, place)
        query = "SELECT listed, dirty FROM inode JOIN entry ON entry.inode = inode.id WHERE name IN (?, ?)"
        assert db.execute(query, (b"dir", b"file")).fetchall() == [(1, 0), (0, 0)]
        db.close()
        end(run, place)
