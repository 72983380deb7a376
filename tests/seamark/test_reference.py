"""The reference says what --help does, and completion works in real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from seamark import reference
from tests.conftest import missing

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "make"), [("reference.md", reference.markdown), ("seamark.1", reference.man)]
)
def test_it_is_up_to_date(name, make):
    assert (ROOT / "docs" / name).read_text() == make(), f"python -m seamark.reference > docs/{name}"


def test_every_command_and_option_is_there():
    text = reference.markdown()
    for path, command, _ in reference._all():
        assert f"## {path}\n" in text
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name != "version":
                assert all(name in text for name in parameter.opts), (path, parameter)


def test_man_reads_it():
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    done = subprocess.run(
        ["man", "--warnings", "-l", ROOT / "docs" / "seamark.1"], capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "100"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "push-pem" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_of_shells_parse(shell, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "seamark", "completion", shell],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "_SEAMARK_COMPLETE" in done.stdout
    if shell != "bash" and shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(done.stdout)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_sessions_are_completed_in_bash(tmp_path):
    if shutil.which("bash") is None:
        missing("bash is not installed")
    for name in ("photos", "phones", "mail"):
        (tmp_path / "state" / "sessions" / name).mkdir(parents=True)
    tool = tmp_path / "seamark"
    tool.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m seamark "$@"\n')
    tool.chmod(0o755)
    script = (
        'eval "$(seamark completion bash)"; COMP_WORDS=(seamark start ph); COMP_CWORD=2; '
        '_seamark_completion seamark; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SEAMARK_STATE_DIR": str(tmp_path / "state")},
    )  # fmt: skip
    assert done.stdout.split() == ["phones", "photos"], done
