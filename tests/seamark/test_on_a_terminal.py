"""The whole program as a person sits before it: a real terminal, Ctrl-C, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import time

from tests.seamark.terminal import Terminal

RUN = """
import sys
from seamark.cli import main
sys.exit(main(["run", "primary", "secondary", *{words!r}]))
"""


def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "primary").mkdir()
    for n in range(20):
        (tmp_path / "primary" / f"file{n}").write_text(str(n))
    return {"XDG_STATE_HOME": str(tmp_path / "state"), "SEAMARK_STATE_DIR": "", "SEAMARK_BROKER": ""}


def test_once_ends_at_100_percent(tmp_path, monkeypatch):
    env = _place(tmp_path, monkeypatch)
    terminal = Terminal(RUN.format(words=["--once"]), env=env)
    assert terminal.wait(60) == 0
    lines = terminal.lines()
    assert (tmp_path / "secondary" / "file19").read_text() == "19"
    assert lines[-1].startswith("100 %, finished: scanned ")
    assert "· finished" in "\n".join(lines)
    assert "files 20 of 20" in "\n".join(lines)
    assert not terminal.screen.cursor.hidden


def test_ctrl_c_ends_in_order_and_leaves_no_process(tmp_path, monkeypatch):
    env = _place(tmp_path, monkeypatch) | {"SEAMARK_TEST": tmp_path.name}
    terminal = Terminal(RUN.format(words=[]), env=env)
    deadline = time.monotonic() + 60
    while "· idle" not in "\n".join(terminal.screen.display) and time.monotonic() < deadline:
        assert terminal.read(0.1), "\n".join(terminal.lines())
    assert "· idle" in "\n".join(terminal.screen.display), "\n".join(terminal.lines())
    assert len(_ours(tmp_path.name)) > 4  # workers, beat, Redis …
    os.write(terminal.master, b"\x03")
    assert terminal.wait(45) == 0, "\n".join(terminal.lines())
    assert "Traceback" not in "\n".join(terminal.lines())
    assert "100 %" not in "\n".join(terminal.lines())  # it was stopped, not finished
    assert not terminal.screen.cursor.hidden
    assert _ours(tmp_path.name) == []


def _ours(name):
    """Processes that were started with SEAMARK_TEST=name, as ps prints them."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if f"SEAMARK_TEST={name}".encode() in file.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            continue
    if not found:
        return []
    listing = subprocess.run(
        ["ps", "-o", "pid=,args=", "-p", ",".join(map(str, found))],
        capture_output=True,
        text=True,
        check=False,
    )
    return listing.stdout.splitlines()
