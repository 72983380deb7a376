"""A named session on two nodes, each with its monitor: one is active, and they take turns."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.conftest import need
from tests.judge import assert_same, rsync_differences
from tests.scheduler.test_monitor import Node, _below


class Member(Node):
    """One of the nodes."""

    def __init__(self, base, name):
        base.mkdir()
        super().__init__(base)
        (base / "runtime").mkdir(mode=0o700)
        self.environment |= {"SEAMARK_NODE": name, "XDG_RUNTIME_DIR": str(base / "runtime")}

    def wait_status(self, status):
        self.wait_for(lambda: self.status["status"] == status, f"{status}, not {self.status}")

    @property
    def status(self):
        return json.loads(self.ok("status", "photos", "--json"))

    def kill(self):
        for pid in [self.process.pid, *_below(self.process.pid)]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def pair(tmp_path):
    need("rsync", "mtree")
    made = [Member(tmp_path / name, name) for name in ("nas-1", "nas-2")]
    yield made
    for member in made:
        if member.process is not None and member.process.poll() is None:
            member.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_take_turns(pair, tmp_path, redis_server):
    primary, copy = tmp_path / "primary", tmp_path / "copy"
    primary.mkdir()
    (primary / "a").write_text("1")
    first, second = pair
    first.ok("create", "photos", primary, copy)
    first.ok("start", "photos")
    first.monitor("--broker", redis_server.url)
    first.wait_for_file(copy / "a", "1")
    # The other one is set up while this one is at work.
    second.ok("create", "photos", primary, copy)
    second.monitor("--broker", redis_server.url)
    second.ok("start", "photos")
    second.wait_status("Passive")
    said = second.ok("status", "photos", "--check")
    assert "node nas-1 is active" in said
    assert "ACTIVE NODE                nas-1, for " in said
    assert second.status["primary_node"] == "nas-2"
    assert "nas-1, for " in first.ok("status", "photos", "--detail")
    # Stopped on one, it goes on on the other one.
    first.ok("stop", "photos")
    second.wait_status("Active")
    (primary / "a").write_text("2")
    second.wait_for_file(copy / "a", "2")
    first.ok("start", "photos")
    first.wait_status("Passive")
    second.kill()
    (primary / "a").write_text("3")
    first.wait_for_file(copy / "a", "3")
    first.wait_status("Active")
    first.wait_for(lambda: not rsync_differences(primary, copy), "the same")
    told = [
        json.loads(line.partition(" event ")[2])
        for line in (first.state / "logs" / "photos.log").read_text().splitlines()
        if " event {" in line
    ]
    assert [(event["event"], event["node"]) for event in told if event["event"] != "faulty"] == [
        ("active", "nas-1"), ("stopped", "nas-1"), ("passive", "nas-1"), ("active", "nas-1"),
    ]  # fmt: skip
    assert first.stop() == 0
    assert_same(primary, copy)
