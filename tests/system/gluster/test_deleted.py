"""A session is deleted, and its volume is as it was: what Seamark removes is never what it has mounted."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.judge import assert_same, differences
from tests.system.gluster.test_commands import _until, seamark  # noqa: F401
from tests.system.trees import many_small_files

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@contextlib.contextmanager
def monitor(place, environment):
    with open(place.base / "monitor.log", "wb") as log:
        command = [sys.executable, "-m", "seamark", "monitor"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd="/")
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_deleted_as_soon_as_it_is_stopped(place, seamark):  # noqa: F811
    """The session's own mount is there until its process has ended."""
    root = place.volume(1)
    many_small_files(root / "many", 30, 3)
    seamark("create", "g", place.address, place.secondary)
    with monitor(place, seamark.environment):
        seamark("start", "g")
        _until(lambda: not differences(root, place.secondary), place)
        seamark("stop", "g")
        seamark("delete", "g")
        assert not (place.state / "sessions" / "g").exists()
        assert place.address.encode() not in Path("/proc/self/mountinfo").read_bytes()
    assert len(list((root / "many").rglob("f*"))) == 30
    assert_same(root, place.secondary)


def test_its_state_is_removed_by_hand_while_it_runs(place, seamark):  # noqa: F811
    """As nobody should; it is not the volume that is lost by that."""
    root = place.volume(1)
    many_small_files(root / "many", 30, 3)
    seamark("create", "g", place.address, place.secondary)
    with monitor(place, seamark.environment):
        seamark("start", "g")
        _until(lambda: not differences(root, place.secondary), place)
        shutil.rmtree(place.state, ignore_errors=True)
    assert len(list((root / "many").rglob("f*"))) == 30
