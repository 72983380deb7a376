"""A named session on a Gluster volume, through all the commands that a person gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.judge import assert_same, differences
from tests.system.harness import REPOSITORY
from tests.system.trees import many_small_files

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def seamark(place):
    environment = {
        **os.environ, **place.node.environment, "PYTHONPATH": str(REPOSITORY), "SEAMARK_STATE_DIR": str(place.state),
    }  # fmt: skip

    def run(*words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "seamark", *map(str, words)], env=environment, capture_output=True, text=True, cwd="/",
            check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    run.environment = environment
    return run


def test_a_named_session_from_create_to_delete(place, seamark):
    root = place.volume(*(3, "replica", "2", "arbiter", "1"))
    many_small_files(root / "many", 30, 3)
    said = seamark("create", "g", place.address, place.secondary, "--dry-run")
    assert "3 bricks, 3 on this node" in said
    assert "/changelog.changelog" not in said and not place.state.exists()
    said = seamark("create", "g", place.address, place.secondary)
    assert f"changelog.changelog of volume {place.name} is on now" in said
    seamark("start", "g")
    with open(place.base / "monitor.log", "wb") as log:
        monitor = subprocess.Popen(
            [sys.executable, "-m", "seamark", "monitor"],
            env=seamark.environment,
            stdout=log,
            stderr=log,
            cwd="/",
        )
    try:
        _until(lambda: not differences(root, place.secondary), place)
        (root / "many" / "new").write_text("new")
        _until(lambda: not differences(root, place.secondary), place)
        (status,) = map(json.loads, seamark("status", "g", "--json").splitlines())
        assert (status["primary_volume"], status["detector"]) == (place.name, "changelogs")
        assert "recorded (changelogs)" in seamark("doctor", "g")
        seamark("verify", "g")
        (place.secondary / "many" / "new").write_text("foreign")
        seamark("verify", "g", code=9)
        seamark("resync", "g", "many", "--wait")
        assert_same(root, place.secondary)
        seamark("stop", "g", "--now")
        seamark("verify", "g")
    finally:
        monitor.terminate()
        monitor.wait(60)
    assert str(place.state) not in Path("/proc/self/mountinfo").read_text()
    seamark("delete", "g", "--reset-sync-time")
    assert not [name for name in os.listxattr(root) if "seamark" in name]


def _until(condition, place, timeout=90):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, (place.base / "monitor.log").read_text()[-3000:]
        time.sleep(0.3)
