"""`seamark stop --now`: nothing is waited for, nothing is lost, and no process stays behind."""

from __future__ import annotations

import os
import signal

import pytest

from tests.judge import assert_same
from tests.scheduler.test_monitor import _alive, _below, node  # noqa: F401


@pytest.mark.slow
def test_what_is_under_way_is_dropped_and_done_again(node):  # noqa: F811
    primary, copy = node.session("photos")
    (primary / "large").write_bytes(os.urandom(4 << 20))
    node.monitor()
    node.ok("config", "photos", "set", "bandwidth", "64K")  # a minute for it
    node.ok("start", "photos")
    node.wait_for(lambda: list(copy.glob(".seamark/staging/*.*")), "the file to be under way")
    below = set(_below(node.process.pid))
    of_session = set(_below(node.pids("photos")["agent"])) | set(node.pids("photos").values())
    said = node.ok("stop", "photos", "--now")
    assert "nothing of it runs" in said
    assert of_session <= below
    node.wait_for(lambda: not any(_alive(pid) for pid in of_session), "all of it to be gone", 5)
    assert not (copy / "large").exists()
    assert node.command("stop", "photos", "--now").returncode == 2
    node.ok("config", "photos", "reset", "bandwidth")
    node.ok("start", "photos")
    node.wait_for(lambda: (copy / "large").exists(), "the file")
    node.ok("stop", "photos", "--now")
    assert_same(primary, copy)
    node.stop()


@pytest.mark.slow
def test_a_stop_that_takes_long_can_be_hurried(node):  # noqa: F811
    primary, copy = node.session("photos")
    (primary / "a").write_text("a")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for_file(copy / "a", "a")
    worker = node.pids("photos")["worker data"]
    os.kill(worker, signal.SIGSTOP)  # it does not obey
    node.ok("stop", "photos")
    assert _alive(worker)
    node.ok("stop", "photos", "--now")
    assert not _alive(worker)
    node.stop()
