"""`seamark delete` is killed before each system call by which it removes something: it can be done again, and nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import msgspec
import pytest

from replication.errors import ExitCode
from replication.session import Desired, SessionDir
from tests.killing import REPOSITORY, kill_at_each, run_killed

DELETE = """
import sys
from seamark.__main__ import main
sys.argv = ["seamark", "delete", sys.argv[2], "--state-dir", sys.argv[1]]
import seamark.commands.delete
print("ready", flush=True)
sys.stdin.readline()
main()
"""


def seamark(state, *words):
    return subprocess.run(
        [sys.executable, "-m", "seamark", *words, "--state-dir", str(state)],
        capture_output=True, text=True, cwd="/", env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False,
    )  # fmt: skip


def what_is_left(state):
    """But for logs, and for directories and locks that all sessions have in common."""
    found = {str(path.relative_to(state)) for path in state.rglob("*") if "logs" not in path.parts}
    return found - {"sessions", "volumes", "volumes/lock", "config", "config/sessions"}


@pytest.mark.parametrize(
    "most",
    [
        pytest.param(3, id="some"),
        pytest.param(None, id="each", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_before_a_call(most, tmp_path):
    primary, secondary, state, ran = (tmp_path / name for name in ("primary", "secondary", "state", "ran"))
    primary.mkdir()
    (primary / "file").write_text("content")
    done = seamark(state, "run", str(primary), str(secondary), "--once")
    assert done.returncode == 0, done.stderr
    (name,) = (path.name for path in (state / "sessions").iterdir())
    place = SessionDir(state, name)
    place.named_config.parent.mkdir(parents=True)
    shutil.copy(place.run_config, place.named_config)
    place.save_state(msgspec.structs.replace(place.state(), desired=Desired.STOPPED))
    shutil.copytree(state, ran, symlinks=True)

    def work(log, point):
        shutil.rmtree(state)
        shutil.copytree(ran, state, symlinks=True)
        killed, _ = run_killed(DELETE, [state, name], log, point)
        assert seamark(state, "list").returncode == 0
        again = seamark(state, "delete", name)
        if again.returncode == ExitCode.NOT_FOUND:
            assert not place.path.exists()
        else:
            assert again.returncode == 0, again.stderr
        assert what_is_left(state) == set()
        made = seamark(state, "create", name, str(primary), str(secondary))
        assert made.returncode == 0, made.stderr
        assert (gone := seamark(state, "delete", name)).returncode == 0, gone.stderr
        assert (secondary / "file").read_text() == "content"
        return killed

    kill_at_each("delete", work, tmp_path / "log", most)
