"""Whoever writes the progress database is killed at each point: what it said is so, nothing is half done, the mark is true."""

from __future__ import annotations

import json
import re

import pytest

from replication.progress import Progress
from tests.killing import kill_at_each, run_killed

# Each step is asked again after a kill until it was said to be done, as tasks are that run twice.
WRITER = """
import json, sys
from pathlib import Path
from replication import unsettled
from replication.checkpoints import Checkpoint
from replication.failures import Failure
from replication.progress import Progress

def failure(gfid, first_ns):
    return Failure(step="data", gfid=gfid, path="p", code="io", error="why", first_ns=first_ns)

def crawl(progress, number, since):
    if progress.begin_crawl(1, f"c{number}", number, since, 0, {"C:0": "[]"}):
        progress.crawled(f"c{number}", "C:0", {"C:0.1": "[]", "C:0.2": "[]"})

STEPS = [
    lambda p: p.brick().epoch or p.new_epoch(0),
    lambda p: p.secondary_is("index", 1, "boot"),
    lambda p: crawl(p, 1, 100),
    lambda p: (p.crawled("c1", "C:0.1", {}), p.crawled("c1", "C:0.2", {})),
    lambda p: p.crawl_swept("c1"),
    lambda p: p.synced(2),
    lambda p: p.end_crawl(1, "c1", recorded=True),
    lambda p: [p.change(lambda db: (unsettled.miss(db, [(b"d", b"d")], r.since_ns), unsettled.doubted(db, r))) for r in p.look(unsettled.rows) if r.gfid == ""],
    lambda p: p.change(lambda db: unsettled.wait_for(db, p.look(unsettled.rows), 3)),
    lambda p: p.checkpoints() or p.ask(250, position=3, by_time=False),
    lambda p: p.take(1, 1, [failure("ab", 210)], [], 200),
    lambda p: p.advance(1, 3, 300),
    lambda p: p.take(1, 2, [], [("data:ab", 2**62)], 300),
    lambda p: p.advance(1, 5, 500),
    lambda p: p.change(lambda db: unsettled.listed(db, [r for r in p.look(unsettled.rows) if r.gfid])),
    lambda p: p.change(lambda db: unsettled.wait_for(db, p.look(unsettled.rows), 5)),
    lambda p: p.change(lambda db: unsettled.applied(db, p.brick().front)),
    lambda p: p.scanned("scan", 10**18),
]
at, path = int(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
progress = Progress(path)
for number, step in enumerate(STEPS[at:], at):
    step(progress)
    brick = progress.brick()
    print(json.dumps([number, brick.front, brick.stime_ns, brick.complete]), flush=True)
progress.close()
"""


@pytest.mark.parametrize(
    "most",
    [
        pytest.param(4, id="some"),
        pytest.param(None, id="each", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_killed_before_a_call(most, tmp_path):
    marks = {}  # after each step, of the run that was not killed

    def work(log, point):
        path = tmp_path / re.sub(r"\W", "_", f"progress-{point}")
        killed, said = run_killed(WRITER, [0, path], log, point)
        steps = [json.loads(line) for line in said]
        if point is None:
            marks.update({number: rest for number, *rest in steps})
        done = steps[-1][0] if steps else -1
        now = Progress(path)
        brick = now.brick()
        now.close()
        # All that was said stands; of the step that was not, all or nothing.
        between = [marks[n] for n in (done, done + 1) if n in marks] or [[0, 0, False]]
        if done < 0:
            between.append([0, 0, False])
        assert [brick.front, brick.stime_ns, brick.complete] in between
        _, said = run_killed(WRITER, [max(done, 0), path], tmp_path / "again", None)
        assert [json.loads(line)[1:] for line in said][-1] == [5, 500, True]
        now = Progress(path)
        assert now.failures() == []
        assert now.frontier() == {}
        assert [(c.time_ns, c.reached_ns is not None) for c in now.checkpoints()] == [(250, True)]
        assert now.taken(1) == 2
        assert now._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        now.close()
        return killed

    kill_at_each("progress", work, tmp_path / "calls", most)
