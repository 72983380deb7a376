"""One primary, several secondaries: sessions that share one agent and one changelog; each judged by rsync and mtree."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from replication import sharing
from replication.changelog.control import agent_call
from replication.changelog.store import ChangelogStore
from replication.progress import Progress
from replication.session import SessionDir
from tests.scheduler.test_monitor import _below, node  # noqa: F401
from tests.system.conftest import place  # noqa: F401
from tests.system.test_cascade import differing
from tests.system.test_faults import busy
from tests.system.trees import many_small_files

pytestmark = pytest.mark.timeout(400)  # up to three sessions, each with processes of its own


class Fan:
    """Sessions b0, b1, … of one primary, below one monitor."""

    def __init__(self, node, count=3, files=200, options=()):  # noqa: F811
        self.node, self.primary = node, node.base / "a"
        self.primary.mkdir()
        many_small_files(self.primary, files, 5)
        self.names = [f"b{number}" for number in range(count)]
        self.copies = {name: node.base / name for name in self.names}
        for name in self.names:
            node.ok("create", name, self.primary, self.copies[name], *options)
        node.monitor()
        for name in self.names:
            node.ok("start", name)
        self.settle(*self.names)

    def place(self, name):
        return SessionDir(self.node.state, name)

    @property
    def volume(self):
        return sharing.volume_dir(self.node.state, str(self.primary))

    def settle(self, *names, timeout=90):
        """Until these have what the primary has, and a front: what was recorded until now is applied there."""
        for name in names or self.names:
            self.node.wait_for(
                lambda copy=self.copies[name]: copy.exists() and not differing(self.primary, copy),
                lambda copy=self.copies[name]: f"{copy}: {differing(self.primary, copy)[:5]}",
                timeout,
            )

    def stop(self, name):
        self.node.ok("stop", name, "--now")

    def log(self, name):
        """What the session's own log says."""
        return self.node.ok("logs", name, "--lines", "100000")

    def crawls(self, name):
        return [line for line in self.log(name).splitlines() if "hybrid crawl begins" in line]

    def agents(self):
        """Processes below the monitor that have a fanotify group open."""
        return [pid for pid in _below(self.node.process.pid) if _records(pid)]

    def agent(self):
        pids = json.loads((self.node.state / "monitor" / "pids.json").read_text())
        return pids.get(f"agent {self.volume.name}", 0)

    def applied(self):
        return agent_call(self.volume / "changelog", "status")["applied"]

    def keeps_up(self, name):
        """Wait until this one has applied what was recorded until now."""
        position = agent_call(self.volume / "changelog", "barrier")["position"]
        with closing(Progress(self.place(name).progress)) as progress:
            self.node.wait_for(lambda: progress.brick().front >= position, f"{name} at {position}", 90)


def _records(pid):
    try:
        return any("fanotify" in os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def fan(node):  # noqa: F811
    return lambda *args, **more: Fan(node, *args, **more)


def test_three_secondaries_of_one_primary_have_one_agent(fan):
    """One process with one fanotify group; a rename goes to all without data; one is deleted, the others go on."""
    all_of = fan()
    assert [all_of.agent()] == all_of.agents()
    for name in all_of.names:
        assert all_of.place(name).detector() == "filesystem"
        assert len(all_of.crawls(name)) == 1, all_of.crawls(name)
    before = cpu_s(all_of.agent())
    stop, seed = threading.Event(), random.randrange(1 << 30)
    print(f"seed {seed}")
    writer = threading.Thread(target=busy, args=(all_of.primary, stop, seed))
    writer.start()
    time.sleep(5)
    stop.set()
    writer.join()
    all_of.settle()
    status = agent_call(all_of.volume / "changelog", "status")
    print(
        f"{status['events']} events, {cpu_s(all_of.agent()) - before:.2f} s of processor time, {status['rss'] >> 20} MiB"
    )
    for name in all_of.names:
        assert len(all_of.crawls(name)) == 1, all_of.crawls(name)
    all_of.stop("b2")
    all_of.node.ok("delete", "b2")
    (all_of.primary / "after").write_text("of two")
    all_of.settle("b0", "b1")
    all_of.node.wait_for(lambda: set(all_of.applied()) == {"b0", "b1"}, "two consumers")
    assert all_of.agents() == [all_of.agent()]
    for name in ("b0", "b1"):
        all_of.stop(name)
        all_of.node.ok("delete", name)
    assert not all_of.volume.exists()
    assert all_of.agents() == []
    assert all_of.node.stop() == 0


def test_one_that_is_stopped_costs_the_others_nothing_and_loses_nothing(fan):
    """What it missed is kept for it, and read when it is started again, with no scan."""
    all_of = fan(2)
    agent = all_of.agent()
    all_of.stop("b1")
    for number in range(20):
        (all_of.primary / f"n{number}").write_text("while one was stopped")
        time.sleep(0.05)
    os.rename(all_of.primary / "d1", all_of.primary / "renamed")
    all_of.settle("b0")
    assert all_of.agent() == agent
    assert len(all_of.crawls("b0")) == 1
    assert not (all_of.copies["b1"] / "n1").exists()
    inode = os.stat(all_of.copies["b1"] / "d1").st_ino
    all_of.node.ok("start", "b1")
    all_of.settle("b1")
    assert os.stat(all_of.copies["b1"] / "renamed").st_ino == inode
    assert len(all_of.crawls("b1")) == 1, all_of.crawls("b1")
    assert all_of.agent() == agent
    all_of.stop("b0")  # the first of them: the agent was never its own
    (all_of.primary / "later").write_text("later")
    all_of.settle("b1")
    assert len(all_of.crawls("b1")) == 1
    assert all_of.node.stop() == 0


@pytest.mark.slow
def test_beyond_the_limit_the_one_that_is_behind_scans_and_no_other(fan):
    all_of = fan(3, options=("--set", "changelog_limit=1M"))
    all_of.stop("b2")
    all_of.node.ok("pause", "b1")
    for turn in range(10):
        for number in range(1000):
            (all_of.primary / f"d{number % 5}" / f"{turn}-{number}-{'long name' * 15}").touch()
        all_of.keeps_up("b0")
    with ChangelogStore(all_of.volume / "changelog") as store:
        gaps = [info for info in store.segments() if info.reason == "limit"]
        assert gaps, store.segments()[:3]
        assert store.size() <= 1 << 20
    assert "over its limit" in all_of.log("b0")
    assert len(all_of.crawls("b0")) == 1, all_of.crawls("b0")
    all_of.node.ok("start", "b2")
    all_of.node.ok("resume", "b1")
    all_of.settle()
    for name in ("b1", "b2"):
        assert "limit" in all_of.crawls(name)[1], all_of.crawls(name)
    assert len(all_of.crawls("b0")) == 1
    assert all_of.node.stop() == 0


@pytest.mark.slow
def test_a_slow_one_whose_segments_are_dropped_under_its_hands(fan):
    """Its link takes little: batches are under way when what they are about is dropped. Nothing is passed over."""
    all_of = fan(2, options=("--set", "changelog_limit=1M"))
    all_of.node.ok("config", "b1", "set", "bandwidth", "20K")
    for turn in range(10):
        for number in range(1000):
            path = all_of.primary / f"d{number % 5}" / f"{turn}-{number}-{'long name' * 15}"
            path.write_bytes(os.urandom(50))
        (all_of.primary / f"large{turn}").write_bytes(os.urandom(50_000))
        all_of.keeps_up("b0")
    with ChangelogStore(all_of.volume / "changelog") as store:
        assert store.size() <= 1 << 20
    all_of.node.ok("config", "b1", "reset", "bandwidth")
    all_of.settle(timeout=180)
    assert "limit" in " ".join(all_of.crawls("b1")), all_of.crawls("b1")
    assert len(all_of.crawls("b0")) == 1, all_of.crawls("b0")
    assert all_of.node.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_agent_is_killed(fan, number):
    """It is started again; what nobody recorded is a gap for all, and nothing is missing."""
    all_of = fan(2)
    stop, seed = threading.Event(), random.randrange(1 << 30)
    print(f"seed {seed}")
    writer = threading.Thread(target=busy, args=(all_of.primary, stop, seed))
    writer.start()
    for _ in range(3):
        time.sleep(1)
        before = all_of.agent()
        os.kill(before, number)
        all_of.node.wait_for(lambda before=before: all_of.agent() not in (0, before), "another")
    time.sleep(0.5)
    stop.set()
    writer.join()
    all_of.settle()
    assert all_of.agents() == [all_of.agent()]
    assert all_of.node.stop() == 0


@pytest.mark.slow
def test_the_process_of_a_session_is_killed_and_the_other_does_not_notice(fan):
    all_of = fan(2)
    agent = all_of.agent()
    pids = json.loads((all_of.node.state / "monitor" / "pids.json").read_text())
    os.kill(pids["session b0"], signal.SIGKILL)
    (all_of.primary / "n").write_text("n")
    all_of.settle()
    assert all_of.agent() == agent
    assert len(all_of.crawls("b1")) == 1
    assert len(all_of.crawls("b0")) == 1  # nor does it miss anything itself
    assert all_of.node.stop() == 0


@pytest.mark.slow
def test_a_planned_failover_of_one_while_the_other_goes_on(fan):
    """The agent does not end with the session: what it has recorded last is asked for."""
    all_of = fan(2)
    for number in range(50):
        (all_of.primary / f"n{number}").write_text("written just before")
    done = subprocess.run(
        [sys.executable, "-m", "seamark", "failover", "b1", "--planned", "--yes"],
        capture_output=True, text=True, env=all_of.node.environment, cwd="/", timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert differing(all_of.primary, all_of.copies["b1"]) == []
    (all_of.primary / "later").write_text("only for the other")
    all_of.settle("b0")
    assert not (all_of.copies["b1"] / "later").exists()
    assert len(all_of.crawls("b0")) == 1
    assert all_of.node.stop() == 0


@pytest.mark.slow
def test_a_reboot(fan):
    all_of = fan(2)
    for pid in [all_of.node.process.pid, *_below(all_of.node.process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    all_of.node.process.wait()
    (all_of.primary / "n").write_text("while nobody looked")
    all_of.node.monitor()
    all_of.settle()
    assert all_of.node.stop() == 0


def test_runs_in_the_foreground_share_it_too(node, place):  # noqa: F811
    """The first records; when it ends the other does, after a comparison."""
    many_small_files(place.primary, 100, 4)
    other = place.base / "other"
    with place.run() as first:
        first.wait_idle()
        second = place.run(secondary=other)
        second.wait_for(lambda: other.exists() and not differing(place.primary, other), "the second copy")
        (place.primary / "both").write_text("both")
        second.wait_for(lambda: not differing(place.primary, other), "the second copy")
        first.wait_for(lambda: not differing(place.primary, place.secondary), "the first copy")
        assert first.stop() == 0
    with second:
        (place.primary / "one").write_text("one")
        second.wait_for(lambda: not differing(place.primary, other), "the second copy")
        second.process.terminate()
        assert second.wait() == 0
    assert differing(place.primary, other) == []


def row(state, secondary):
    """What `seamark status` says of the session with this secondary."""
    words = [sys.executable, "-m", "seamark", "status", "--json", "--state-dir", str(state)]
    said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120).stdout
    return next(
        found for line in said.splitlines() if (found := json.loads(line)).get("secondary") == str(secondary)
    )


@pytest.mark.slow
def test_a_run_that_sleeps_while_it_records_for_another_is_told_of(node, place):  # noqa: F811
    """All of the first is frozen: the second cannot know what changes, says so, and goes on when the first wakes."""
    many_small_files(place.primary, 100, 4)
    other = place.base / "other"
    with place.run() as first:
        first.wait_idle()
        second = place.run(secondary=other)
        with second:
            second.wait_idle()
            frozen = [first.process.pid, *_below(first.process.pid)]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                (place.primary / "meanwhile").write_text("meanwhile")
                second.wait_for(lambda: row(place.state, other)["healthy"] is False, "it to be told of", 200)
                print(row(place.state, other)["reasons"])
            finally:
                for pid in reversed(frozen):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
            second.wait_for(lambda: not differing(place.primary, other), "the second copy", 200)
            second.process.terminate()
            assert second.wait() == 0
