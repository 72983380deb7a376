"""Sessions with a key of their own: made, used by a running monitor, renewed, and taken back."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.judge import assert_same
from tests.scheduler.test_monitor import node  # noqa: F401


@pytest.fixture
def pair(node, ssh_server):  # noqa: F811
    primary, copy = node.base / "p", node.base / "copy"
    primary.mkdir()
    where = f"{ssh_server.user}@{ssh_server.host}:{copy}"
    words = ["create", "photos", primary, where, "push-pem", "--ssh-port", ssh_server.port]
    return primary, copy, [*words, "--identity", ssh_server.identity, "--accept-new-host-key"]


def lines(server):
    file = server.home / ".ssh" / "authorized_keys"
    return (
        [line for line in file.read_text().splitlines() if "seamark-session:" in line]
        if file.exists()
        else []
    )


@pytest.mark.parametrize(
    "method", ["auto", *(pytest.param(m, marks=pytest.mark.slow) for m in ("rsync", "tar"))]
)
def test_a_session_lives_by_its_own_key(node, ssh_server, pair, method):  # noqa: F811
    primary, copy, words = pair
    said = node.ok(*words, "--set", f"sync_method={method}")
    assert "[OK]   key: and nothing else" in said
    shutil.move(ssh_server.authorized_keys, node.base / "not any more")  # no other key gets in
    (primary / "large").write_bytes(os.urandom(12 << 20))
    with open(primary / "sparse", "wb") as file:
        file.write(b"a")
        file.seek(20 << 20)
        file.write(b"z")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: (copy / "sparse").exists() and (copy / "large").exists(), "the copy")
    with open(primary / "large", "r+b") as file:
        file.seek(5 << 20)
        file.write(b"changed")
    (primary / "last").write_text("1")
    node.wait_for_file(copy / "last", "1")
    node.wait_for(lambda: (copy / "large").read_bytes() == (primary / "large").read_bytes(), "the delta")
    assert (copy / "sparse").stat().st_blocks < 1000
    assert_same(primary, copy)
    node.ok("stop", "photos")
    node.wait_for(lambda: node.command("delete", "photos").returncode == 0, "the session to be deleted")
    assert lines(ssh_server) == []
    assert list(ssh_server.home.glob(".local/share/seamark/*")) == []
    assert node.stop() == 0


@pytest.mark.slow
def test_renewed_kept_and_removed_by_hand(node, ssh_server, pair):  # noqa: F811
    _, _, words = pair
    node.ok(*words)
    (first,) = lines(ssh_server)
    node.ok("push-pem", "photos", "--identity", ssh_server.identity)
    (second,) = lines(ssh_server)
    assert first.split()[-2] != second.split()[-2]
    key = node.state / "sessions" / "photos" / "id_ed25519"
    made = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True).stdout
    assert made.split()[1] == second.split()[-2]
    assert str(key) in node.ok("config", "photos", "get", "ssh.identity")
    node.ok("delete", "photos", "--keep-key")
    assert lines(ssh_server) == [second]
    node.ok(*words)
    ssh_server.stop()
    done = node.command("delete", "photos")
    assert done.returncode == 0
    assert second.split()[-1] in done.stderr and "authorized_keys" in done.stderr
    assert node.ok("list") == ""


@pytest.mark.slow
def test_doctor_sees_an_old_gate_and_a_key_that_is_not_let_in(node, ssh_server, pair):  # noqa: F811
    _, _, words = pair
    node.ok(*words)
    assert "agent:" not in node.command("doctor", "photos").stdout
    (gate,) = (ssh_server.home / ".local" / "share" / "seamark").iterdir()
    gate.write_bytes(
        b"#!as if it were older\n" + gate.read_bytes()
    )  # a zip file may have something before it
    said = node.command("doctor", "photos").stdout
    assert "[WARN] agent: the one that lies there" in said and "[OK]   secondary" in said, said
    (ssh_server.home / ".ssh" / "authorized_keys").write_text("")
    said = node.command("doctor", "photos").stdout
    assert "[FAIL] login" in said and "seamark push-pem photos" in said, said
    node.ok("push-pem", "photos", "--identity", ssh_server.identity)
    said = node.command("doctor", "photos").stdout
    assert "[OK]   login" in said and "agent:" not in said, said


def test_nothing_is_left_of_one_that_failed(node, ssh_server, pair):  # noqa: F811
    _, copy, words = pair
    assert node.command(*words, "--dry-run").returncode == 0
    assert lines(ssh_server) == []
    ssh_server.stop()
    ssh_server.settings["AuthorizedKeysFile"] = str(ssh_server.authorized_keys)
    ssh_server.start()
    done = node.command(*words)
    assert done.returncode == 1
    assert "AuthorizedKeysFile" in done.stderr
    assert lines(ssh_server) == []
    assert not (node.state / "sessions" / "photos").exists()
    assert node.ok("list") == ""
    home = [*words[:3], f"{ssh_server.user}@{ssh_server.host}:{ssh_server.home}", *words[4:], "--adopt"]
    done = node.command(*home)
    assert (done.returncode, "must not contain each other" in done.stderr) == (1, True), done
    local = node.command("create", "photos", node.base / "p", copy, "push-pem")
    assert (local.returncode, "reached by ssh" in local.stderr) == (2, True)
