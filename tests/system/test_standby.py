"""Two nodes that see the same primary: one works, the other takes over when it dies, and a stale one is refused.

Nodes are state directories with runtime directories of their own, which share a Redis.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import threading
import time

import pytest

from scheduler.reports import session_reports
from tests.conftest import need
from tests.judge import assert_same, rsync_differences
from tests.sshd import shared_ssh_server, ssh_server  # noqa: F401
from tests.system.harness import SeamarkRun
from tests.system.test_faults import busy
from tests.system.trees import many_small_files

pytestmark = pytest.mark.timeout(900)
WITHIN_S = 120  # generous: a busy machine; docs/operations.md says what is usual


class Nodes:
    """Nodes that see one primary, and replicate it to one secondary."""

    def __init__(self, base, broker):
        self.base, self.broker = base, broker
        self.primary, self.secondary = base / "primary", base / "secondary"
        self.primary.mkdir()
        self.runs = []

    def start(self, name, *options, secondary=None, **more):
        runtime = self.base / f"runtime.{name}"
        runtime.mkdir(mode=0o700, exist_ok=True)
        run = SeamarkRun(
            self.primary, secondary or self.secondary, self.base / f"state.{name}", "--broker", self.broker,
            *options, env={"SEAMARK_NODE": name, "XDG_RUNTIME_DIR": str(runtime)}, **more,
        )  # fmt: skip
        run.name = name
        self.runs.append(run)
        return run

    @property
    def served(self):
        """(epoch, holder) that the secondary serves."""
        owner = json.loads((self.secondary / ".seamark" / "owner").read_text())
        return owner["epoch"], owner["holder"]

    def mark_ns(self):
        """The mark on the primary's root."""
        for name in os.listxattr(self.primary):
            if name.endswith(".stime"):
                return json.loads(os.getxattr(self.primary, name))["stime_ns"]
        return 0

    def close(self):
        for run in self.runs:
            for pid in everything(run):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.wait(20)
            run.close()


def everything(run):
    return [run.process.pid, *run.children()]


def send(run, number):
    """A signal to all of a node: twice, since what was just forked is missed."""
    for _ in range(2):
        for pid in everything(run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def report(run):
    (found,) = session_reports(str(run.state))
    return found


def wait_status(run, status):
    run.wait_for(
        lambda: [found.status for found in session_reports(str(run.state))] == [status],
        f"{run.name} to be {status}", WITHIN_S,
    )  # fmt: skip


def wait_file(run, path, text):
    run.wait_for(
        lambda: path.exists() and path.read_bytes() == text.encode(), f"{path} to be {text!r}", WITHIN_S
    )


def wait_parts(runs):
    """Until one is at work, and the other waits."""

    def parts():
        return sorted(found.status for run in runs for found in session_reports(str(run.state)))

    runs[0].wait_for(lambda: parts() == ["Active", "Passive"], "one at work, and one that waits", WITHIN_S)


@pytest.fixture
def nodes(tmp_path, redis_server):
    need("rsync", "mtree")
    made = Nodes(tmp_path, redis_server.url)
    yield made
    made.close()


@pytest.mark.slow
def test_a_node_takes_over_when_the_other_dies_and_a_stale_one_waits(nodes):
    many_small_files(nodes.primary, 200, 5)
    a = nodes.start("a")
    a.wait_idle()
    b = nodes.start("b")
    wait_status(b, "Passive")
    assert report(a).status == "Active"
    assert (report(a).active_node, report(b).active_node) == ("a", "a")
    assert report(b).healthy is True
    assert report(b).reason == "node a is active"
    # It sleeps, and everything of it: in the middle of work, to which it will want to go on.
    many_small_files(nodes.primary / "more", 500, 5)
    a.wait_for((nodes.secondary / "more" / "d0").exists, "work under way")
    send(a, signal.SIGSTOP)
    many_small_files(nodes.primary / "more", 500, 5, seed=2)
    epoch, holder = nodes.served
    wait_status(b, "Active")
    (nodes.primary / "more" / "while it slept").write_text("1")
    wait_file(b, nodes.secondary / "more" / "while it slept", "1")
    served = nodes.served
    assert served[0] > epoch
    assert served[1] != holder
    send(a, signal.SIGCONT)
    wait_status(a, "Passive")
    assert report(a).active_node == "b"
    (nodes.primary / "after").write_text("2")
    wait_file(b, nodes.secondary / "after", "2")
    b.wait_idle()
    assert nodes.served == served
    # What the other one knew is gone with it.
    b.kill()
    (nodes.primary / "after").write_text("3")
    wait_file(a, nodes.secondary / "after", "3")
    assert report(a).status == "Active"
    a.wait_same(WITHIN_S)
    assert a.stop() == 0
    assert_same(nodes.primary, nodes.secondary)


def test_what_the_dead_node_alone_knew_is_compared(nodes):
    """A change whose metadata was seen, and whose content was still to come, looks as if it were there."""
    many_small_files(nodes.primary, 20, 2)
    changed = nodes.primary / "d0" / "f0"
    with nodes.start("a", "--once") as a:
        assert a.wait(WITHIN_S) == 0, a.report()
    changed.write_bytes(b"n" * changed.stat().st_size)
    found = changed.stat()
    with contextlib.closing(sqlite3.connect(nodes.secondary / ".seamark" / "index.sqlite")) as db, db:
        row = "WHERE id = (SELECT inode FROM entry WHERE name = ?)"
        done = db.execute(f"UPDATE inode SET pctime = ? {row}", (found.st_ctime_ns, b"f0"))
        assert done.rowcount == 1
    os.utime(nodes.secondary / "d0" / "f0", ns=(found.st_atime_ns, found.st_mtime_ns))
    with nodes.start("b", "--once") as b:
        assert b.wait(WITHIN_S) == 0, b.report()
    assert_same(nodes.primary, nodes.secondary)
    assert nodes.served[1] == state(b)["instance"]


def state(run):
    (path,) = run.state.glob("sessions/*/state.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_redis_emptied_changes_nobodys_part_and_an_orderly_end_hands_over(nodes):
    many_small_files(nodes.primary, 50, 5)
    a = nodes.start("a")
    a.wait_idle()
    b = nodes.start("b")
    wait_status(b, "Passive")
    holder = nodes.served[1]
    for number in range(3):
        with b.redis() as client:
            client.flushall()
        (nodes.primary / "d0" / "f0").write_text(f"{number}")
        wait_file(a, nodes.secondary / "d0" / "f0", f"{number}")
    assert nodes.served[1] == holder
    assert (report(a).status, report(b).status) == ("Active", "Passive")
    assert a.stop() == 0
    wait_status(b, "Active")
    (nodes.primary / "d0" / "f0").write_text("from b")
    wait_file(b, nodes.secondary / "d0" / "f0", "from b")
    again = nodes.start("a")
    wait_status(again, "Passive")
    assert b.stop() == 0
    wait_status(again, "Active")
    again.wait_same(WITHIN_S)
    assert again.stop() == 0
    assert_same(nodes.primary, nodes.secondary)


@pytest.mark.slow
def test_both_at_once_and_one_that_shall_end_by_itself(nodes):
    many_small_files(nodes.primary, 50, 5)
    both = [nodes.start("a"), nodes.start("b")]
    both[0].wait_same(WITHIN_S)
    wait_parts(both)
    once = nodes.start("c", "--once")
    assert once.wait(WITHIN_S) == 8
    assert "runs session" in once.of_type("error")[0]["message"]
    for run in both:
        assert run.stop() == 0
    assert_same(nodes.primary, nodes.secondary)


def watch_mark(nodes, stop, wrong):
    """The mark on the primary's root never goes back, whoever writes it."""
    before = 0
    while not stop.is_set():
        now = nodes.mark_ns()
        if now < before:
            wrong.append((before, now, nodes.served))
        before = max(before, now)
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "freeze", "freeze and empty Redis"])
@pytest.mark.parametrize("by_ssh", [False, True])
def test_nodes_fail_one_after_the_other_under_load(nodes, request, fault, by_ssh):
    options, secondary = [], None
    if by_ssh:
        server = request.getfixturevalue("ssh_server")
        secondary = f"{server.user}@{server.host}:{nodes.secondary}"
        options = [
            "--ssh-port",
            str(server.port),
            "--identity",
            str(server.identity),
            "--accept-new-host-key",
        ]
    many_small_files(nodes.primary, 300, 8)
    names = itertools.cycle("ab")
    runs = [nodes.start(next(names), *options, secondary=secondary)]
    runs[0].wait_idle()
    runs.append(nodes.start(next(names), *options, secondary=secondary))
    stop, wrong = threading.Event(), []
    threads = [
        threading.Thread(target=busy, args=(nodes.primary, stop, 11)),
        threading.Thread(target=watch_mark, args=(nodes, stop, wrong)),
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            active, other = runs
            wait_status(other, "Passive")
            active.wait_for(
                lambda active=active: nodes.served[1] == state(active)["instance"],
                "the secondary to serve it",
                WITHIN_S,
            )
            time.sleep(2)
            served = nodes.served
            if fault == "kill":
                active.kill()
            else:
                send(active, signal.SIGSTOP)
            wait_status(other, "Active")
            other.wait_for(lambda served=served: nodes.served[1] != served[1], "a new holder", WITHIN_S)
            if fault == "kill":
                active = nodes.start(active.name, *options, secondary=secondary)
            else:
                if fault == "freeze and empty Redis":
                    with other.redis() as client:
                        client.flushall()  # now either may be the first to take it
                send(active, signal.SIGCONT)
                wait_parts(runs)
            active, other = sorted([active, other], key=lambda run: report(run).status)
            runs = [active, other]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    runs[0].wait_for(lambda: not rsync_differences(nodes.primary, nodes.secondary), "the same", WITHIN_S)
    runs[0].wait_idle()
    for run in reversed(runs):
        assert run.stop() == 0
    assert not wrong
    assert_same(nodes.primary, nodes.secondary)


@pytest.mark.slow
@pytest.mark.root
def test_a_failure_that_only_the_dead_node_knew_of_holds_the_mark(nodes):
    need("setpriv")
    many_small_files(nodes.primary, 40, 4)
    secret = nodes.primary / "d0" / "f0"
    # Root, but for the right to read what its owner may not.
    mortal = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    a = nodes.start("a", prefix=mortal)
    a.wait_idle()
    secret.write_text("hidden")
    secret.chmod(0)
    a.wait_for(lambda: a.status.get("failures", 0), "a failure")
    (nodes.primary / "d1" / "f1").write_text("later")
    wait_file(a, nodes.secondary / "d1" / "f1", "later")
    held = secret.stat().st_ctime_ns
    assert a.progress()["stime_ns"] < held
    b = nodes.start("b", prefix=mortal)
    wait_status(b, "Passive")
    a.kill()
    wait_status(b, "Active")
    b.wait_for(lambda: b.progress()["complete"], "everything to be compared")
    (nodes.primary / "d1" / "f1").write_text("last")
    wait_file(b, nodes.secondary / "d1" / "f1", "last")
    assert b.progress()["stime_ns"] < held
    b.wait_for(lambda: report(b).failures, "the failure to be told")
    assert b.progress()["stime_ns"] < held
    secret.chmod(0o600)
    b.wait_same(WITHIN_S)
    b.wait_for(lambda: b.progress()["stime_ns"] > held, "the mark to move on")
    assert b.stop() == 0
    assert_same(nodes.primary, nodes.secondary)
