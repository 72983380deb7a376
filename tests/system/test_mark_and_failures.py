"""A failure holds the mark until what it is about is on the secondary: whatever else is called so, and whatever was seen before."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time

import pytest

from tests.scheduler.test_failures import locked
from tests.system.hooks import hook
from tests.system.test_deletes import settings
from tests.system.test_lost_ledger import UNHELPED
from tests.system.test_moved_while_looked_at import end, is_ahead, mark_after_now

# For as long as a file is there that has its number nothing that is called "bad" can be read.
UNREADABLE = """
import replication.volume.directory
identify = replication.volume.directory.DirectoryVolume.identify

def failing(self, dir_fd, name):
    if name == b"bad" and os.path.exists({flag!r}):
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if str(found.st_ino) in open({flag!r}).read().split():
            raise OSError(5, "Input/output error")
    return identify(self, dir_fd, name)

replication.volume.directory.DirectoryVolume.identify = failing
"""


def failing(run):
    return run.query("SELECT path, first_ns FROM failure")


def mended(run, flag):
    """What could not be looked at can be; its next try is now."""
    flag.unlink()
    hasten(run)
    run.wait_for(lambda: not failing(run), "the failure to be over")


def hasten(run):
    (path,) = run.state.glob("sessions/*/progress.sqlite")
    with sqlite3.connect(path, timeout=30) as db:
        db.execute("UPDATE failure SET next_ns = 0")
    db.close()


def started(place, tmp_path, code):
    run = place.run(python_path=hook(tmp_path, "tasks.unit", code + UNHELPED))
    run.wait_for(lambda: run.status.get("stime"), "the mark")
    run.wait_idle()
    return run


def test_a_directory_is_made_again_by_the_name_of_one_in_which_something_failed(place, tmp_path):
    """What is looked at there says nothing of the other one, which has another name by now."""
    flag = tmp_path / "flag"
    old = place.primary / "old"
    old.mkdir()
    with started(place, tmp_path, UNREADABLE.format(flag=str(flag))) as run:
        outside = place.base / "bad"
        outside.write_text("content")
        flag.write_text(str(outside.stat().st_ino))
        os.rename(outside, old / "bad")
        at_ns = (old / "bad").stat().st_ctime_ns
        run.wait_for(lambda: failing(run), "a failure")
        old.rename(place.primary / "new")
        old.mkdir()
        (old / "bad").write_text("another")
        run.wait_for((place.secondary / "old" / "bad").exists, "the other one")
        assert not is_ahead(run, at_ns, (place.secondary / "new" / "bad").exists, 8)
        mended(run, flag)
        mark_after_now(run, place)
        assert (place.secondary / "new" / "bad").read_text() == "content"
        end(run, place)


# No directory called "closed" can be listed for as long as a file is there.
CLOSED = """
import tasks.entry
once = tasks.entry._list

def closed(work, observer, gfid, path):
    if path.startswith(b"closed") and os.path.exists({flag!r}):
        class Refused(type(work.ctx.volume)):
            def open_dir(self, path, gfid):
                raise PermissionError(13, "Permission denied")
        work.ctx.volume.__class__ = Refused
        try:
            return once(work, observer, gfid, path)
        finally:
            work.ctx.volume.__class__ = Refused.__mro__[1]
    return once(work, observer, gfid, path)

tasks.entry._list = closed
"""


@pytest.mark.slow
def test_a_directory_that_cannot_be_listed_is_renamed(place, tmp_path):
    """It fails by its new name, and is as old as ever."""
    flag = tmp_path / "flag"
    outside = place.base / "outside"
    outside.mkdir()
    (outside / "file").write_text("content")
    with started(place, tmp_path, CLOSED.format(flag=str(flag))) as run:
        flag.touch()
        os.rename(outside, place.primary / "closed")
        at_ns = (place.primary / "closed").stat().st_ctime_ns
        run.wait_for(lambda: failing(run), "a failure")
        (place.primary / "closed").rename(place.primary / "closed too")
        run.wait_for((place.secondary / "closed too").exists, "the rename")
        assert not is_ahead(run, at_ns, (place.secondary / "closed too" / "file").exists, 15)
        assert len(failing(run)) == 1
        mended(run, flag)
        mark_after_now(run, place)
        assert (place.secondary / "closed too" / "file").read_text() == "content"
        end(run, place)


# Content is not sent for as long as a file is there.
UNSENT = """
import tasks.data
sent = tasks.data._still_wanted

def withheld(work, items):
    import time
    while os.path.exists({held!r}):
        work.alive()
        time.sleep(0.05)
    return sent(work, items)

tasks.data._still_wanted = withheld
"""


@pytest.mark.slow
def test_what_was_right_fails_again_before_that_is_taken_over(place, tmp_path):
    """The look that found it right is of a batch whose content takes a while; the next batch is looked at meanwhile."""
    flag, held = tmp_path / "flag", tmp_path / "held"
    code = UNREADABLE.format(flag=str(flag)) + UNSENT.format(held=str(held))
    bad = place.primary / "bad"
    with started(place, tmp_path, code) as run:
        outside = place.base / "bad"
        outside.write_text("")
        number = str(outside.stat().st_ino)
        flag.write_text(number)
        os.rename(outside, bad)
        run.wait_for(lambda: failing(run), "a failure")
        held.touch()
        flag.unlink()
        (place.primary / "large").write_bytes(os.urandom(20_000_000))
        bad.touch()
        run.wait_for((place.secondary / "bad").exists, "it")
        flag.write_text(number)
        bad.write_text("changed")
        at_ns = bad.stat().st_ctime_ns
        (place.primary / "later").touch()
        run.wait_for((place.secondary / "later").exists, "the next batch")
        held.unlink()
        run.wait_for((place.secondary / "large").exists, "the content")
        assert not is_ahead(run, at_ns, lambda: (place.secondary / "bad").read_text() == "changed", 15)
        mended(run, flag)
        end(run, place)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ['max_delete = "1"', "ignore_deletes = true"])
def test_what_lacks_content_is_removed_and_its_directory_is_held(place, tmp_path, setting):
    """Nobody will ever send it: that is no failure, and holds nothing but what the hold itself does."""
    held = tmp_path / "held"
    assert place.once().process.returncode == 0
    settings(place, setting)
    directory = place.primary / "dir"
    with started(place, tmp_path, UNSENT.format(held=str(held))) as run:
        held.touch()
        (directory / "below").mkdir(parents=True)
        (directory / "below" / "file").write_bytes(os.urandom(20_000_000))
        (directory / "below" / "other").touch()
        run.wait_for((place.secondary / "dir" / "below").exists, "the directory")
        time.sleep(2)
        shutil.rmtree(directory)
        late = place.primary / "late"
        late.touch()
        run.wait_for((place.secondary / "late").exists, "what came later")
        held.unlink()
        run.wait_for(lambda: run.progress()["front_ns"] > late.stat().st_ctime_ns, "the front")
        if setting.startswith("ignore"):
            mark_after_now(run, place)
        run.wait_for(lambda: not failing(run), "no failure")
        time.sleep(8)
        assert not failing(run)
        assert run.stop() == 0


@pytest.mark.slow
@pytest.mark.root
def test_what_could_not_be_made_there_is_no_failure_once_it_could(place, tmp_path):
    """No comparison of the tree is needed for that."""
    directory = place.primary / "dir"
    directory.mkdir()
    with started(place, tmp_path, "") as run:
        run.wait_for((place.secondary / "dir").exists, "it")
        with locked(place.secondary / "dir"):
            (directory / "link").symlink_to("nowhere")
            run.wait_for(lambda: failing(run), "a failure")
        hasten(run)
        run.wait_for(lambda: not failing(run), "the failure to be over")
        assert len([m for m in run.of_type("log") if "hybrid crawl begins" in m["message"]]) == 1
        end(run, place)
