"""A hybrid crawl has looked at something, and Redis is lost before it has been sent: what was looked at is not looked at again."""

from __future__ import annotations

import os

from tests.judge import assert_same
from tests.system.hooks import hook

LOST = """
def lost(ledger):
    os.unlink({flag!r})
    if os.path.exists({root!r} + "/old"):
        os.rename({root!r} + "/old", {root!r} + "/new")
    ledger.redis.flushall()
    os._exit(9)

finish = module.Unit.finish

def killed(self, **found):
    if self.name.startswith("C:") and os.path.exists({flag!r}):
        lost(self.ctx.ledger)
    return finish(self, **found)

module.Unit.finish = killed
"""

# What is left over is looked for whenever nothing is under way: the mark must not need that.
UNHELPED = """
import scheduler.crawl

idle = scheduler.crawl.Crawler._idle

def unhelped(self):
    self._lacking = lambda: ([], False)
    again, scheduler.crawl.list_again = scheduler.crawl.list_again, lambda ctx, epoch: False
    try:
        idle(self)
    finally:
        del self._lacking
        scheduler.crawl.list_again = again

scheduler.crawl.Crawler._idle = unhelped
"""
RENAMED = """
import replication.attributes
row = replication.attributes._row

def renamed(volume, gfid, path):
    if path == b"old/below" and os.path.exists({root!r} + "/old"):
        os.rename({root!r} + "/old", {root!r} + "/new")
    return row(volume, gfid, path)

replication.attributes._row = renamed
"""


def crawled(place, tmp_path, code):
    """A session whose crawl loses Redis; a second one, when the mark has passed what was renamed meanwhile."""
    flag = tmp_path / "flag"
    flag.touch()
    code = (code + UNHELPED).format(flag=str(flag), root=str(place.primary))
    run = place.run("--sync-method", "tar", python_path=hook(tmp_path, "tasks.unit", code))
    run.wait_for(lambda: not flag.exists(), "Redis to be lost")
    late = place.primary / "late"
    late.touch()
    at_ns = late.stat().st_ctime_ns
    run.wait_for(lambda: run.progress()["stime_ns"] > at_ns, "the mark")
    return run


def test_content_under_a_name_that_it_has_no_more(place, tmp_path):
    old = place.primary / "old"
    old.mkdir(parents=True)
    (old / "file").write_bytes(os.urandom(100_000))
    os.link(old / "file", old / "link")
    with crawled(place, tmp_path, LOST) as run:
        assert (place.secondary / "new" / "file").exists()
        run.wait_same()
        run.wait_for(lambda: run.status["failures"] == 0, "no failures")
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def test_attributes_under_a_name_that_it_has_no_more(place, tmp_path):
    below = place.primary / "old" / "below"
    below.mkdir(parents=True)
    os.setxattr(below, "user.of", b"below")
    with crawled(place, tmp_path, RENAMED + LOST) as run:
        assert os.getxattr(place.secondary / "new" / "below", "user.of") == b"below"
        run.wait_same()
        run.wait_for(lambda: run.status["failures"] == 0, "no failures")
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


SKIPPED = """
import tasks.crawl
opened = tasks.crawl._Walk._open

def renamed(self, gfid, path):
    if path == b"old/below" and os.path.exists({flag!r}):
        os.unlink({flag!r})
        os.rename({root!r} + "/old", {root!r} + "/new")
    return opened(self, gfid, path)

tasks.crawl._Walk._open = renamed
"""


def test_a_directory_under_a_name_that_it_has_no_more(place, tmp_path):
    """Nothing is lost here but the place of what is to be looked at next."""
    below = place.primary / "old" / "below"
    (below / "deep").mkdir(parents=True)
    (below / "deep" / "file").write_bytes(b"content")
    with crawled(place, tmp_path, SKIPPED) as run:
        assert (place.secondary / "new" / "below" / "deep" / "file").exists()
        run.wait_same()
        run.wait_for(lambda: run.status["failures"] == 0, "no failures")
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)
