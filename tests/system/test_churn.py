"""More than the agent is told: the kernel's queue overflows, and ten million changes in bounded memory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from replication.changelog.control import agent_call
from tests.conftest import missing, need
from tests.filesystems import available, filesystem
from tests.judge import assert_same
from tests.system.trees import many_small_files
from tests.system.unprivileged import NOBODY, as_nobody

pytestmark = pytest.mark.root
SOURCE = Path(__file__).resolve().parents[1] / "churn.c"
MOST_MIB = 200  # of any one process


@pytest.fixture
def churn(place):
    """Runs the generator: (directory, cycles, threads, names)."""
    need("gcc")
    program = place.base / "churn"
    subprocess.run(["gcc", "-O2", "-Wall", "-pthread", "-o", program, SOURCE], check=True)

    def run(*words, user=0):
        subprocess.run(
            ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", program, *map(str, words)],
            check=True,
        )

    return run


def changelog_of(run):
    (found,) = run.state.glob("sessions/*/changelog")
    return found


def test_an_overflow_of_the_kernels_queue_is_covered_by_a_crawl(place, churn):
    """Without privileges the queue is limited. The agent stands still for as long as the generator takes."""
    many_small_files(place.primary, 40, 4)
    prefix = as_nobody(place.base)
    most = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    with place.run(prefix=prefix) as run:
        run.wait_idle()
        changelog = changelog_of(run)
        (place.primary / "churn0").mkdir()
        os.chown(place.primary / "churn0", NOBODY, NOBODY)
        agent_call(changelog, "barrier")
        agent = run.pids("agent")
        os.kill(agent, signal.SIGSTOP)
        try:
            # What the queue has no room for is what came last: a file that is moved, one that goes, one that changes.
            churn(place.primary, 2 * most, 1, most, user=NOBODY)
            os.rename(place.primary / "d0" / "f0", place.primary / "d1" / "moved")
            (place.primary / "d2" / "f2").unlink()
            (place.primary / "d3" / "f3").write_text("changed")
        finally:
            os.kill(agent, signal.SIGCONT)
        run.wait_for(lambda: agent_call(changelog, "status")["overflows"], "an overflow")
        run.wait_for(lambda: any("overflow" in m["message"] for m in run.of_type("log")), "a crawl for it")
        run.wait_same(90)
        run.wait_idle()
        # A file that was renamed while it was to be read is tried again.
        run.wait_for(lambda: run.status.get("failures") == 0, "no failures")
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


class Memory:
    """The most that each process below a run ever had resident, in MiB."""

    def __init__(self, run):
        self.run = run
        self.most = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.5):
            for pid in self.run.children():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    if peak := re.search(r"VmHWM:\s+(\d+)", status):
                        self.most[pid] = max(self.most.get(pid, 0), int(peak[1]) / 1024)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_million_changes_in_bounded_memory(place, churn):
    if reason := available("ext4"):
        missing(reason)
    with filesystem("ext4", place.base / "fs", mib=2000) as mounted:
        place.primary = mounted / "primary"
        place.primary.mkdir()
        many_small_files(place.primary, 200, 8)
        with place.run() as run:
            run.wait_idle()
            changelog = changelog_of(run)
            agent = run.pids("agent")
            with Memory(run) as memory:
                began, events = time.monotonic(), 0
                while events < 10_000_000:  # what the generator did; the kernel merges some of them
                    churn(place.primary, 400_000, 2, 20_000)
                    events += 2 * 400_000 * 5
                took = time.monotonic() - began
                run.wait_same(300)
                run.wait_idle(300)
            status = agent_call(changelog, "status")
            print(
                f"{events} changes in {took:.0f} s, {status['events']} events read, all there after {time.monotonic() - began:.0f} s; overflows: "
                f"{status['overflows']}; agent {memory.most[agent]:.0f} MiB at most, "
                f"any other process {max(memory.most.values()):.0f} MiB"
            )
            assert max(memory.most.values()) < MOST_MIB
            run.wait_for(lambda: run.status.get("failures") == 0, "no failures")
            assert run.stop() == 0
        assert_same(place.primary, place.secondary)
