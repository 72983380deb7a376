"""A secondary that is a primary: what replication changes there is recorded and sent on; a ring is refused."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import threading
import time

import pytest

from replication.changelog.index import State
from replication.changelog.store import ChangelogStore
from tests.conftest import need
from tests.judge import mtree_differences, rsync_differences
from tests.system.conftest import Place
from tests.system.harness import secondary_agents
from tests.system.lines import ended
from tests.system.test_faults import busy, kill_secondary_agents
from tests.system.trees import many_small_files

pytestmark = pytest.mark.timeout(300)
_MARKS = ".d........x ./"  # the root has the mark of each session of its own


def differing(one, other):
    """What the judges say, but for the marks on the roots."""

    def others(root):
        return {n: os.getxattr(root, n) for n in os.listxattr(root) if ".seamark." not in n}

    assert others(one) == others(other)
    return [line for line in rsync_differences(one, other) if line != _MARKS] or mtree_differences(one, other)


class Chain:
    """Directories in a row, each but the first the secondary of the one before."""

    def __init__(self, base, names="abc"):
        self.places = []
        for one, other in itertools.pairwise(names):
            (base / f"{one}{other}").mkdir()
            made = Place(base / f"{one}{other}")
            made.primary.rmdir()
            made.primary, made.secondary = base / one, base / other
            self.places.append(made)
        self.places[0].primary.mkdir()
        self.first, self.last = self.places[0].primary, self.places[-1].secondary

    def once(self, *options):
        for place in self.places:
            run = place.once(*options)
            assert run.process.returncode == 0, run.report()
        return run

    def wait_same(self, runs, timeout=90):
        until = time.monotonic() + timeout
        while found := differing(self.first, self.last):
            assert time.monotonic() < until, (found[:20], [run.report() for run in runs])
            time.sleep(0.3)


@pytest.fixture
def chain(tmp_path):
    need("rsync", "mtree")
    made = Chain(tmp_path)
    yield made
    for place in made.places:
        for run in place.runs:
            if run.process.poll() is None:
                run.kill()
            run.close()


def mark_of(root):
    return {
        name: json.loads(os.getxattr(root, name))["stime_ns"]
        for name in os.listxattr(root)
        if ".stime" in name
    }


def test_what_replication_changes_is_recorded_and_sent_on(chain):
    """Live, of each kind; renames without data; nothing of .seamark; a mark of each session."""
    many_small_files(chain.first, 300, 6)
    chain.once()
    assert differing(chain.first, chain.last) == []
    one, two = chain.places
    with one.run() as above, two.run() as below:
        above.wait_idle()
        below.wait_idle()
        begun = below.counters().get("bytes_sent", 0)
        os.rename(chain.first / "d0", chain.first / "moved")
        os.rename(chain.first / "d1" / "f1", chain.first / "d2" / "came")
        chain.wait_same([above, below])
        assert below.counters().get("bytes_sent", 0) == begun
        inode = os.stat(chain.last / "moved").st_ino
        (chain.first / "d2" / "sub").mkdir()
        for number in range(40):
            (chain.first / "d2" / "sub" / f"n{number}").write_bytes(os.urandom(2000))
        os.link(chain.first / "d2" / "f2", chain.first / "another name")
        os.symlink("nowhere", chain.first / "link")
        os.mkfifo(chain.first / "fifo")
        os.setxattr(chain.first / "d3", "user.note", b"kept")
        shutil.rmtree(chain.first / "d4")
        (chain.first / "large").write_bytes(os.urandom(5_000_000))
        chain.wait_same([above, below])
        with open(chain.first / "large", "r+b") as file:
            file.seek(1_000_000)
            file.write(b"changed")
        (chain.first / "d2" / "f2").write_text("through one of two names")
        os.chmod(chain.first / "moved", 0o750)
        os.rename(chain.first / "moved", chain.first / "d3" / "deeper")
        chain.wait_same([above, below])
        assert os.stat(chain.last / "d3" / "deeper").st_ino == inode
        above.wait_idle()
        below.wait_idle()
        assert below.status["failures"] == above.status["failures"] == 0
        assert above.stop() == 0
        assert below.stop() == 0
    assert differing(chain.first, chain.last) == []
    inner = chain.last / ".seamark"
    assert not [path for path in inner.rglob("*.sqlite") if path.parent != inner]
    assert json.loads((inner / "owner").read_text())["lineage"][:1] == [
        json.loads((two.primary / ".seamark" / "owner").read_text())["volume"]
    ]
    ours, theirs = mark_of(chain.first), mark_of(chain.last)
    assert set(mark_of(two.primary)) == set(ours) | set(theirs)
    assert not set(ours) & set(theirs)


@pytest.mark.slow
def test_a_comparison_of_the_middle_while_it_is_being_written(chain):
    """Its hybrid crawls meet files that are half there, and what is in staging and limbo; agents are killed."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    many_small_files(chain.first, 1500, 20)
    for number in range(3):
        (chain.first / f"large{number}").write_bytes(os.urandom(4_000_000))
    stop = threading.Event()
    writer = threading.Thread(target=busy, args=(chain.first, stop, seed))
    one, two = chain.places
    with one.run() as above:
        above.wait_for(lambda: (two.primary / "d1").exists(), "a beginning")
        with two.run() as below:
            below.wait_for(lambda: list(two.state.glob("sessions/*/pids.json")), "its processes")
            writer.start()
            try:
                for _ in range(2):
                    time.sleep(1.5)
                    if secondary_agents(above):
                        kill_secondary_agents(above)
                    os.kill(below.pids("agent"), 9)  # a gap: all of the middle is compared
            finally:
                time.sleep(1)
                stop.set()
                writer.join()
            chain.wait_same([above, below])
            below.wait_idle()
            below.wait_for(lambda: below.status["failures"] == 0, "what was renamed while it was read")
            assert above.stop() == 0
            assert below.stop() == 0
    assert differing(chain.first, chain.last) == []


def test_a_mark_on_the_middle_is_no_change_of_it(chain):
    (chain.first / "f").write_text("1")
    chain.once()
    one, two = chain.places
    with two.run() as below:
        below.wait_idle()
        position = below.progress()["front"]
        (changelog,) = two.state.glob("sessions/*/changelog")
        for number in range(3):
            name = next(name for name in os.listxattr(two.primary) if ".stime" in name)
            os.setxattr(two.primary, name, os.getxattr(two.primary, name) + b" " * (number + 1))
            time.sleep(0.6)
        assert below.stop() == 0
    with ChangelogStore(changelog) as store:
        assert all(info.state is State.TICK for info in store.segments(position))
    assert one


def test_a_ring_is_refused_before_anything_is_done(chain):
    (chain.first / "f").write_text("1")
    chain.once()
    one, two = chain.places
    before = sorted(os.listdir(chain.first))
    middle, kept, two.state = two.primary, two.state, two.state.parent / "ring"
    for two.primary in (middle, chain.last):
        for options in ([], ["--adopt"], ["--dry-run"]):
            ended(two.once(*options, secondary=chain.first), 2, "a copy of this very volume")
    two.primary, two.state = middle, kept
    assert sorted(os.listdir(chain.first)) == before
    assert one.once().process.returncode == 0


def test_a_ring_that_closes_above_is_refused_at_the_next_start(chain):
    """b to c, then c to a, and only then a to b."""
    one, two = chain.places
    two.primary.mkdir()
    (two.primary / "f").write_text("1")
    assert two.once().process.returncode == 0
    state = two.state
    two.state, middle = state.parent / "ca", two.primary
    two.primary = chain.last
    assert two.once(secondary=chain.first).process.returncode == 0
    two.primary, two.state = middle, state
    ended(one.once("--adopt"), 2, "a copy of this very volume")
