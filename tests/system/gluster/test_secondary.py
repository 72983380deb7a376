"""A mount of a Gluster volume as the secondary: a directory as any other, with inode numbers of 64 bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.judge import assert_same
from tests.system.gluster.test_primary import churn
from tests.system.harness import REPOSITORY, SeamarkRun
from tests.system.trees import every_kind_of_thing, many_small_files

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def reverse(place, tmp_path):
    """A directory that is replicated to a volume."""
    place.secondary = place.volume(2)
    place.primary = tmp_path / "directory"
    place.primary.mkdir()

    def run(*options):
        made = SeamarkRun(place.primary, place.secondary, place.state, *options)
        place.runs.append(made)
        return made

    place.begin = run
    return place


def test_a_directory_is_replicated_to_a_mount(reverse):
    root = reverse.primary
    every_kind_of_thing(root)
    subprocess.run(["setcap", "-r", root / "file"], check=True)  # Gluster keeps no capabilities
    subprocess.run(["setfacl", "-b", "-k", root / "file", root / "dir"], check=True)  # XFS shows them twice
    many_small_files(root / "many", 50, 5)
    with reverse.begin() as run:
        run.wait_idle()
        assert any(path.stat().st_ino >> 63 for path in reverse.secondary.rglob("*") if not path.is_symlink())
        churn(root)
        run.wait_same(90)
        (root / "many" / "d1" / "f1").write_bytes(os.urandom(5_000_000))
        os.kill(run.pids("worker control"), signal.SIGKILL)
        many_small_files(root / "more", 50, 5, seed=2)
        run.wait_same(90)
        assert run.status["failures"] == 0, run.report()
        assert run.stop() == 0
    with reverse.begin("--once") as again:
        assert again.wait(90) == 0
        assert again.status["files_done"] == 0
    found = subprocess.run(
        [sys.executable, "-m", "seamark", "verify", next(reverse.state.glob("sessions/*")).name], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SEAMARK_STATE_DIR": str(reverse.state)}, cwd="/", check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert_same(root, reverse.secondary)
