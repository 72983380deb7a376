"""A session's own key: it serves that session by every engine, and nothing else, whatever is asked of it.

A real sshd reads the authorized_keys that push writes; the client's side is the real ssh, scp and rsync.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from replication.remote import pem
from replication.remote.client import SecondaryClient
from replication.remote.command import ssh_command
from replication.remote.errors import AgentFailed, AuthFailed, RemoteError
from replication.remote.launch import open_secondary
from replication.secondary.gate import REFUSED_STATUS, gate
from tests.conftest import need
from tests.sshd import SshServer

SESSION = "0123456789abcdef0123456789abcdef"
UNIT = "/.seamark/staging/unit.ab"


class Pushed:
    """An sshd whose user has our key for ``root``; ``options`` go by that key."""

    def __init__(self, base):
        self.home = base / "sshd" / "home"
        self.file = self.home / ".ssh" / "authorized_keys"
        self.server = SshServer(base / "sshd")
        self.root = base / "the root"
        self.new = self.root / (UNIT + "/new")[1:]
        self.new.mkdir(parents=True)
        self.elsewhere = base / "elsewhere"
        self.elsewhere.mkdir()
        self.target = self.server.target(self.root)
        self.key = base / "key"
        self.public = pem.make_key(self.key)
        pem.push(self.target, self.server.options(), SESSION, self.public)
        self.options = pem.gated(self.server.options(), self.key)

    def ssh(self, command, *options, stdin=b""):
        words = [*ssh_command(self.target, self.options), *options, "--", self.target.login]
        return subprocess.run([*words, *command], input=stdin, capture_output=True, timeout=60, check=False)

    def rsync_e(self):
        return shlex.join(ssh_command(self.target, self.options))


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    need("sshd", "ssh", "ssh-keygen", "scp", "rsync")
    made = Pushed(tmp_path_factory.mktemp("gate"))
    yield made
    made.server.stop()


def test_the_key_serves_its_root(pushed):
    link = open_secondary(pushed.target, pushed.options)
    client = SecondaryClient(link.reader, link.writer)
    assert client.survey()["real"] == str(pushed.root)
    link.close()
    assert pem.holes_in(pushed.target, pushed.options) == []


def test_modes_and_one_line(pushed):
    assert pushed.file.stat().st_mode & 0o7777 == 0o600
    assert pushed.file.parent.stat().st_mode & 0o7777 == 0o700
    assert pushed.key.stat().st_mode & 0o7777 == 0o600
    (line,) = pushed.file.read_text().splitlines()
    assert line.startswith('restrict,command="') and line.endswith(
        f"{pushed.public} seamark-session:{SESSION}"
    )


REFUSED = [
    "id", "", "sh -c id", "cat /etc/passwd", "/usr/lib/openssh/sftp-server", "scp -t /tmp", "scp -f /etc/passwd",
    "seamark-agent 1 " + b"/etc".hex(), "seamark-agent 1", "seamark-agent 999 ROOT", "seamark-agent 1 ROOT; id",
    "seamark-agent 1 ROOT\nid", "seamark-has gzip;id", "seamark-has gzip id", "seamark-has sh", "seamark-has $(id)",
    "seamark-revoke x", "command -v gzip", "tar --extract --directory=/tmp", "seamark-untar none /etc",
    f"seamark-untar none {UNIT}/../../../..", f"seamark-untar none {UNIT}/basis", f"seamark-untar sh {UNIT}/new",
    "seamark-untar none /.seamark/staging/unit.cd/new",
    "rsync --server --sender -ISpe.LsfxCIvu . /etc/", f"rsync --server --sender -ISpe.LsfxCIvu . {UNIT}/new/",
    "rsync --server -ISpe.LsfxCIvu . /tmp/", f"rsync --server -ISpe.LsfxCIvu . {UNIT}/new/../../../../",
    f"rsync --server -ISpRe.LsfxCIvu . {UNIT}/new/", f"rsync --server -ISple.LsfxCIvu . {UNIT}/new/",
    f"rsync --server -ISpre.LsfxCIvu . {UNIT}/new/", f"rsync --server -ISpDe.LsfxCIvu . {UNIT}/new/",
    f"rsync --server -se.LsfxCIvu . {UNIT}/new/", f"rsync --server -s . {UNIT}/new/",
    f"rsync --server -ISpe.LsfxCIvu --log-file=/tmp/x . {UNIT}/new/",
    f"rsync --server -ISpe.LsfxCIvu --partial-dir /tmp . {UNIT}/new/",
    f"rsync --server -ISpe.LsfxCIvu --partial-dir . {UNIT}/new/",
    f"rsync --server -ISpe.LsfxCIvu --copy-dest /etc . {UNIT}/new/",
    f"rsync --server -ISpe.LsfxCIvu --copy-dest /.seamark/staging/unit.cd/basis . {UNIT}/new/",
    f"rsync --server -ISpe.LsfxCIvu --delete . {UNIT}/new/", f"rsync --server -ISpe.LsfxCIvu . {UNIT}/new/ /etc/",
    f"rsync --server -ISpe.LsfxCIvu  . {UNIT}/new/", "rsync --server --daemon .", "rsync --server", "rsync",
]  # fmt: skip


def test_everything_else_is_refused(pushed, monkeypatch, capsys):
    root = os.fsencode(pushed.root)
    for command in REFUSED:
        monkeypatch.setenv("SSH_ORIGINAL_COMMAND", command.replace("ROOT", root.hex()))
        assert gate(SESSION, root) == REFUSED_STATUS, command
        out, err = capsys.readouterr()
        assert (out, err.startswith("seamark: refused: ")) == ("", True), (command, out, err)


def test_also_by_way_of_sshd(pushed):
    for command in [
        "id",
        None,
        REFUSED[7],
        "seamark-agent 1 ROOT\nid",
        f"seamark-untar none {UNIT}/../../../..",
    ]:
        done = pushed.ssh([command.replace("ROOT", os.fsencode(pushed.root).hex())] if command else [])
        assert (done.returncode, done.stdout, b"refused" in done.stderr) == (94, b"", True), (command, done)


def test_real_programs_are_refused(pushed):
    secret = pushed.elsewhere / "secret"
    secret.write_text("x")
    into, login = pushed.elsewhere / "out", pushed.target.login
    into.mkdir(exist_ok=True)
    e = ["-e", pushed.rsync_e()]
    scp = ["scp", *ssh_command(pushed.target, pushed.options)[1:-2], f"-P{pushed.server.port}"]
    scp = [word for word in scp if not word.startswith("-p")]
    for command in [
        ["rsync", "-a", *e, f"{login}:/etc/hostname", f"{into}/"],
        ["rsync", "-a", *e, f"{secret}", f"{login}:{pushed.elsewhere}/copy"],
        ["rsync", "-a", *e, f"{secret}", f"{login}:{UNIT}/new/"],
        ["rsync", "-a", "--protect-args", *e, f"{secret}", f"{login}:{UNIT}/new/"],
        [*scp, f"{login}:{secret}", f"{into}/"],
        [*scp, "-O", f"{login}:{secret}", f"{into}/"],
        [*scp, f"{secret}", f"{login}:{pushed.elsewhere}/copy"],
    ]:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        assert done.returncode != 0, command
        if command[0] == "rsync" or "-O" in command:  # sshd drops what a subsystem says to standard error
            assert b"refused: this key" in done.stderr or b"refused: not" in done.stderr, done
    assert os.listdir(into) == []
    assert sorted(os.listdir(pushed.elsewhere)) == ["out", "secret"]
    assert os.listdir(pushed.new) == []


def test_no_forwarding_and_no_terminal(pushed):
    words = ssh_command(pushed.target, pushed.options)
    words = [word for word in words if "ClearAllForwardings" not in word and "ForwardAgent" not in word]
    done = subprocess.run(
        [*words, "-W", f"127.0.0.1:{pushed.server.port}", "--", pushed.target.login],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (255, b""), done  # sshd's own greeting, were it let through
    assert b"PTY allocation request failed" in pushed.ssh(["id"], "-tt").stderr


def test_names_in_a_tar_stream_stay_where_they_belong(pushed, tmp_path):
    import io
    import tarfile

    outside = pushed.elsewhere / "outside"
    good = "ab" * 16
    (pushed.new / ("cd" * 16)).symlink_to(outside)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, kind in [
            ("../" + good, tarfile.REGTYPE), (str(outside), tarfile.REGTYPE), ("ef" * 16, tarfile.SYMTYPE),
            ("ef" * 16, tarfile.CHRTYPE), ("cd" * 16, tarfile.REGTYPE), ("x/" + good, tarfile.REGTYPE),
            (good, tarfile.REGTYPE),
        ]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(outside)
            member.size = 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"abc"))
    done = pushed.ssh([f"seamark-untar none {UNIT}/new"], stdin=packed.getvalue())
    assert done.returncode == 2
    assert done.stdout.decode().split() == [good], done
    assert (pushed.new / good).read_text() == "abc"
    assert not outside.exists()
    for name in os.listdir(pushed.new):
        (pushed.new / name).unlink()


def test_a_staging_that_is_a_link_is_refused(pushed):
    link = pushed.root / ".seamark" / "staging" / "unit.ef"
    link.symlink_to(pushed.elsewhere)
    done = pushed.ssh(["seamark-untar none /.seamark/staging/unit.ef/new"])
    assert done.returncode == 94
    link.unlink()


def test_another_protocol_says_what_to_do(pushed, monkeypatch):
    from replication.remote import bundle

    monkeypatch.setattr(bundle, "VERSION", 999)
    with pytest.raises(AgentFailed, match="seamark push-pem NAME"):
        open_secondary(pushed.target, pushed.options)


def test_other_lines_stay_and_a_key_can_take_itself_back(tmp_path):
    need("sshd", "ssh", "ssh-keygen")
    made = Pushed(tmp_path)
    try:
        ours = made.file.read_bytes()
        others = b"# mine\r\n\nssh-rsa AAAA odd \xff comment\nssh-ed25519 AAAA no-newline-at-its-end"
        made.file.write_bytes(others)
        made.file.chmod(0o640)
        pem.push(made.target, made.server.options(), SESSION, made.public)
        pem.push(made.target, made.server.options(), SESSION, made.public)
        assert made.file.read_bytes() == others + b"\n" + ours
        assert made.file.stat().st_mode & 0o7777 == 0o640
        gate = made.home / ".local" / "share" / "seamark" / f"gate-{SESSION}.pyz"
        assert gate.stat().st_mode & 0o7777 == 0o600
        second = pem.make_key(tmp_path / "second")
        pem.push(made.target, made.server.options(), SESSION, second)
        with pytest.raises(AuthFailed):
            open_secondary(made.target, made.options)
        pem.revoke(made.target, replace(made.options, identity=tmp_path / "second"))
        assert made.file.read_bytes() == others + b"\n"
        assert not gate.exists()
        assert list(Path(made.home).rglob("*.new")) == []
        with pytest.raises(AuthFailed):
            pem.revoke(made.target, replace(made.options, identity=tmp_path / "second"))
    finally:
        made.server.stop()


@pytest.mark.parametrize("where", ["", ".ssh", ".ssh/keys", ".local", ".local/share/seamark/x"])
def test_a_root_that_could_change_what_limits_it_is_refused(pushed, where):
    with pytest.raises(RemoteError, match="must not contain each other"):
        pem.push(pushed.server.target(pushed.home / where), pushed.server.options(), "f" * 32, pushed.public)
    assert "f" * 32 not in pushed.file.read_text()
