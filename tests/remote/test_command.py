"""The system's ssh under our policy: run for real against a server of our own."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from replication.remote.command import close_shared_connection, control_path, ssh_command
from replication.remote.errors import RemoteError


def run(server, options, command="echo hello"):
    target = server.target("/x")
    done = subprocess.run(
        [*ssh_command(target, options), "--", target.login, command], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_known_host(shared_ssh_server):
    assert run(shared_ssh_server, shared_ssh_server.options()) == (0, "hello\n", "")


def test_unknown_host_is_refused_even_if_we_may_pin(shared_ssh_server):
    """Pinning is the control connection's business, which comes first."""
    options = shared_ssh_server.options(known_hosts_file=shared_ssh_server.pinned, accept_new_host_key=True)
    status, _, errors = run(shared_ssh_server, options)
    assert status == 255
    assert "Host key verification failed" in errors
    assert not shared_ssh_server.pinned.exists()


@pytest.fixture
def short_path():
    """A socket's path has 108 bytes (unix(7)), of which pytest's own directories take many."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.mark.parametrize("name", ["with space", "100%", "%h", "it's", "a#b", "ü"])
def test_files_of_any_name(shared_ssh_server, short_path, name):
    directory = short_path / name
    directory.mkdir()
    for file in (shared_ssh_server.identity, shared_ssh_server.known_hosts):
        shutil.copy(file, directory / file.name)
    options = shared_ssh_server.options(
        identity=directory / "id", known_hosts_file=directory / "known_hosts", run_dir=directory / "run"
    )
    assert run(shared_ssh_server, options)[:2] == (0, "hello\n")
    path = control_path(shared_ssh_server.target("/x"), options)
    assert path.is_socket()
    assert str(path).startswith(str(directory))
    close_shared_connection(shared_ssh_server.target("/x"), options)
    assert not path.exists()


def test_a_run_directory_with_a_long_name(shared_ssh_server, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    options = shared_ssh_server.options(run_dir=tmp_path / ("d" * 100) / "run")
    path = control_path(shared_ssh_server.target("/x"), options)
    assert len(os.fsencode(path)) <= 90
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert run(shared_ssh_server, options)[:2] == (0, "hello\n")
    assert path.is_socket()
    close_shared_connection(shared_ssh_server.target("/x"), options)
    assert not path.parent.exists()


def test_a_run_directory_that_others_can_use_is_refused(shared_ssh_server, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run_dir.chmod(0o755)
    with pytest.raises(RemoteError, match="mode 0700"):
        ssh_command(shared_ssh_server.target("/x"), shared_ssh_server.options(run_dir=run_dir))


def test_different_ways_to_a_host_share_nothing(shared_ssh_server, tmp_path):
    target = shared_ssh_server.target("/x")
    one = control_path(target, shared_ssh_server.options(run_dir=tmp_path / "r"))
    assert one == control_path(target, shared_ssh_server.options(run_dir=tmp_path / "r"))
    assert one != control_path(target, shared_ssh_server.options(run_dir=tmp_path / "r", port=1))
    assert one != control_path(target, shared_ssh_server.options(run_dir=tmp_path / "r", identity=None))


def test_it_never_asks(shared_ssh_server, tmp_path):
    key = tmp_path / "encrypted"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", key], check=True)
    status, _, errors = run(shared_ssh_server, shared_ssh_server.options(identity=key))
    assert status == 255
    assert "Permission denied" in errors
