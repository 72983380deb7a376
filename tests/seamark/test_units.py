"""The systemd unit: systemd itself says whether it is one, and the monitor speaks to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from seamark.cli import main
from seamark.units import monitor_unit
from tests.conftest import need
from tests.test_architecture import ROOT


@pytest.mark.parametrize("system", [True, False])
def test_systemd_understands_it(tmp_path, system):
    need("systemd-analyze")
    unit = monitor_unit(system=system, options=("--flower", "5555", "--state-dir", "/srv/100% $mine"))
    path = tmp_path / unit.path.name
    path.write_text(unit.text)
    command = ["systemd-analyze", "verify", "--man=no", *([] if system else ["--user"]), str(path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"/srv/100%% $$mine"' in unit.text or "'/srv/100%% $$mine'" in unit.text


def test_a_dry_run_prints_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["install-units", "--user", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"# {tmp_path}/systemd/user/seamark.service" in said
    assert "NoNewPrivileges=yes" in said
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_for_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["install-units", "--user", "--", "--flower"]) == 0
    assert "systemctl --user enable --now seamark.service" in capsys.readouterr().out
    path = tmp_path / "systemd" / "user" / "seamark.service"
    assert path.read_text() == monitor_unit(system=False, options=("--flower",)).text
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_monitor_says_that_it_is_ready_alive_and_stopping(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {
            **os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000", "PYTHONPATH": str(ROOT),
            "SEAMARK_STATE_DIR": str(tmp_path / "state"),
        }  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-m", "seamark", "monitor"], env=environment, cwd="/"
        ) as process:
            try:
                said = []
                while not {"READY=1", "WATCHDOG=1"} <= set(said):
                    said.append(manager.recv(1000).decode())
                process.send_signal(signal.SIGTERM)
                while said[-1] != "STOPPING=1":
                    said.append(manager.recv(1000).decode())
                assert process.wait(60) == 0
            finally:
                process.kill()
    assert "STATUS=0 sessions run" in said
