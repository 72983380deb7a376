"""The worker that moves the mark is killed at each point: the mark is never ahead of what is durable, and gets there."""

from __future__ import annotations

import contextlib
import re
import sqlite3

import pytest

from replication.progress import Progress
from replication.session import SessionDir
from replication.volume.stime import marked_ns, read_mark
from tests.killing import kill_at_each, run_killed

# A crawl that has swept the tree and two batches after it, none of which has a unit left.
WORKER = """
import os, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from replication.session import Session, SessionDir
from scheduler.epoch import take_over
from tasks import context as contexts, mark
from tasks.app import use
from tasks.servers import of_url
url, base, first = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "first"
os.environ["SEAMARK_STATE_DIR"] = str(base / "state")
use(of_url(url))
if first:
    for name in ("primary", "secondary"):
        (base / name).mkdir(parents=True)
    place = SessionDir(base / "state", "s1")
    place.save_run(Session(name="s1", id="i1", instance="i1", primary=str(base / "primary"), secondary=str(base / "secondary")))
ctx = contexts.context("s1")
if first:
    epoch = take_over(ctx)
    ctx.progress.begin_crawl(epoch, "c1", 1, 100, 0, {})
    ctx.secondary(epoch).client.begin_crawl("c1")
    batch = {"kind": "hybrid", "crawl": "c1", "start_ns": time.time_ns(), "final": True, "since_ns": 0}
    ctx.ledger.open(epoch, 1, batch, {})
    for number, end_ns in ((2, 200), (3, 300)):
        ctx.ledger.open(epoch, number, {"kind": "changelog", "last": number, "start_ns": end_ns - 50, "end_ns": end_ns}, {})
epoch = ctx.progress.brick().epoch
ctx.secondary(epoch)
print("ready", flush=True)
sys.stdin.readline()
mark.update_stime("s1", epoch, 1)
mark.update_stime("s1", epoch, 3)
mark.publish_stime("s1", epoch)
print("done", flush=True)
os._exit(0)
"""


def meta(base):
    """What the secondary's index says of itself."""
    with contextlib.closing(sqlite3.connect(base / "secondary" / ".seamark" / "index.sqlite")) as index:
        found = index.execute("SELECT * FROM meta").fetchall()
    return {k.decode() if isinstance(k, bytes) else k: v for k, v in found}


def judge(base):
    """What is true at any moment."""
    progress = Progress(SessionDir(base / "state", "s1").progress)
    brick, (_, gen, _) = progress.brick(), progress.secondary()
    progress.close()
    there = meta(base)
    assert gen <= int(there["gen"])
    if brick.front or brick.stime_ns:
        assert gen > 0, "the front moved, and nothing was synced"
    if brick.complete:
        assert not there.get("crawl"), "the crawl is complete here, and there it is open"
    marks = [marked_ns(read_mark(str(base / end), "i1")) for end in ("secondary", "primary")]
    assert marks[0] <= marks[1] <= brick.stime_ns
    return brick, marks


@pytest.mark.parametrize(
    "most",
    [
        pytest.param(3, id="some"),
        pytest.param(None, id="each", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_killed_before_a_call(most, tmp_path, redis_server):
    def work(log, point):
        with redis_server.client() as client:
            client.flushall()
        base = tmp_path / re.sub(r"\W", "_", f"at-{point}")
        killed, said = run_killed(WORKER, [redis_server.url, base, "first"], log, point)
        assert killed or said[-1] == "done"
        judge(base)
        with redis_server.client() as client:
            for lock in client.scan_iter(match="*lock:publish mark"):
                client.delete(lock)  # of who was killed with it: it expires
        _, said = run_killed(WORKER, [redis_server.url, base, "again"], tmp_path / "again", None)
        assert said[-1] == "done"
        brick, marks = judge(base)
        assert (brick.front, brick.stime_ns, brick.complete, marks) == (3, 300, True, [300, 300])
        return killed

    kill_at_each("mark", work, tmp_path / "calls", most)
