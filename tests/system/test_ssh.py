"""The whole thing over a real sshd: first contact, every method, and a link that breaks."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import pytest

from replication import session_file
from tests.judge import assert_same, rsync_differences
from tests.sshd import shared_ssh_server, ssh_server  # noqa: F401
from tests.system.harness import agents_among
from tests.system.lines import ended, said
from tests.system.trees import every_kind_of_thing, many_small_files

METHODS = ["auto", "rsync", *(pytest.param(method, marks=pytest.mark.slow) for method in ("tar", "stream"))]


class Far:
    """A secondary behind a server: how it is named, and the options that reach it."""

    def __init__(self, place, server):
        self.place, self.server = place, server
        self.target = f"{server.user}@{server.host}:{place.secondary}"
        self.options = ["--ssh-port", str(server.port), "--identity", str(server.identity)]

    def run(self, *options, **more):
        made = self.place.run(*self.options, *options, secondary=self.target, **more)
        made.secondary = self.place.secondary  # for the judges
        return made

    def once(self, *options, timeout=90, **more):
        with self.run("--once", *options, **more) as made:
            made.wait(timeout)
            return made


@pytest.fixture
def far(place, shared_ssh_server):  # noqa: F811
    return Far(place, shared_ssh_server)


@pytest.fixture
def own(place, ssh_server):  # noqa: F811
    """With a server of its own, which may be stopped."""
    return Far(place, ssh_server)


# ---- first contact


def test_an_unknown_host_key_is_refused_until_it_is_accepted(far):
    many_small_files(far.place.primary, 20, 2)
    ended(far.once(), 1, "is not known", "--accept-new-host-key", "SHA256:")
    assert not far.place.secondary.exists()
    run = far.once("--accept-new-host-key")
    assert run.process.returncode == 0, run.report()
    assert_same(far.place.primary, far.place.secondary)
    assert far.once().process.returncode == 0  # pinned


def test_a_changed_host_key_is_refused_whatever_is_accepted(own):
    many_small_files(own.place.primary, 20, 2)
    assert own.once("--accept-new-host-key").process.returncode == 0
    own.server.stop()
    own.server.new_host_key()
    own.server.start()
    (own.place.primary / "later").write_text("later")
    ended(own.once("--accept-new-host-key"), 1, "has CHANGED", "ssh-keygen")
    assert not (own.place.secondary / "later").exists()


def test_a_key_that_is_not_let_in_is_permission_denied(own):
    many_small_files(own.place.primary, 5, 1)
    own.server.authorized_keys.write_text("")
    ended(own.once("--accept-new-host-key"), 1, "does not let", str(own.server.identity))


def test_an_unreachable_host_is_temporary(own):
    many_small_files(own.place.primary, 5, 1)
    own.server.stop()
    ended(own.once("--accept-new-host-key"), 5, "refuses the connection")


def programs(server, directory, without):
    """Have the server find its programs in a directory of links that lacks one."""
    directory.mkdir()
    for place in ("/usr/bin", "/usr/sbin"):
        for path in Path(place).iterdir():
            link = directory / path.name
            if path.name != without and not link.is_symlink():
                link.symlink_to(path)
    server.stop()
    server.settings["SetEnv"] = f"HOME={server.home} TMPDIR={server.temporary} PATH={directory}"
    server.start()


@pytest.mark.root
def test_a_host_without_python_is_told(own, tmp_path):
    """Each interpreter that it could find is covered by something else, for the commands of this server alone."""
    many_small_files(own.place.primary, 5, 1)
    command = tmp_path / "command"
    command.write_text(
        "#!/bin/sh\nfor f in /usr/bin/python3* /usr/local/bin/python3*; do\n"
        '[ -x "$f" ] && mount --bind /bin/false "$f"\ndone\nPATH=/usr/bin:/bin exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    own.server.stop()
    own.server.settings["ForceCommand"] = f"unshare --mount --propagation private sh {command}"
    own.server.start()
    ended(own.once("--accept-new-host-key"), 1, "has no Python", "install python3 there")


def test_auto_goes_by_stream_where_there_is_no_rsync(own, tmp_path):
    p = own.place.primary
    many_small_files(p, 20, 2)
    (p / "large").write_bytes(os.urandom(12 << 20))
    programs(own.server, tmp_path / "bin", "rsync")
    run = own.once("--accept-new-host-key")
    assert run.process.returncode == 0, run.report()
    with open(p / "large", "r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    run = own.once()
    assert run.process.returncode == 0, run.report()
    assert_same(p, own.place.secondary)
    ended(own.once("--sync-method", "rsync"), 2, "no rsync", "--sync-method auto")


def test_of_large_files_only_what_changed_is_sent_shifted_or_not(own):
    """By blocks where it was overwritten; where it was shifted, rsync knows what is there already."""
    p = own.place.primary
    for name in ("overwritten", "shifted"):
        (p / name).write_bytes(os.urandom(24 << 20))
    run = own.once("--accept-new-host-key")
    assert run.process.returncode == 0, run.report()
    with open(p / "overwritten", "r+b") as file:
        file.seek(20 << 20)
        file.write(os.urandom(1 << 20))
    (p / "shifted").write_bytes(b"inserted" + (p / "shifted").read_bytes())
    run = own.once()
    assert run.process.returncode == 0, run.report()
    assert_same(p, own.place.secondary)
    assert 1 << 20 < run.status["bytes_sent"] < 2 << 20


# ---- methods


@pytest.mark.parametrize("method", METHODS)
def test_everything_arrives_by_every_method(far, method):
    p = far.place.primary
    every_kind_of_thing(p)
    run = far.once("--accept-new-host-key", "--sync-method", method)
    assert run.process.returncode == 0, run.report()
    assert_same(p, far.place.secondary)
    many_small_files(p / "more", 200, 4)
    with open(p / "big", "r+b") as file:
        file.seek(3_000_000)
        file.write(b"in the middle")
    with open(p / "sparse", "r+b") as file:
        file.seek(1_000_000)
        file.write(b"in a hole")
    with open(p / "dir" / "hard link", "ab") as file:
        file.write(b"through a link")
    run = far.once("--sync-method", method)
    assert run.process.returncode == 0, run.report()
    said(run)
    assert_same(p, far.place.secondary)
    assert (far.place.secondary / "sparse").stat().st_blocks * 512 < 25_000_000


@pytest.mark.slow
def test_live_changes_arrive_over_ssh(far):
    p = far.place.primary
    many_small_files(p, 100, 5)
    with far.run("--accept-new-host-key") as run:
        run.wait_idle()
        many_small_files(p / "new", 300, 6, seed=2)
        os.rename(p / "d0", p / "renamed")
        shutil.rmtree(p / "d1")
        run.wait_same()
        assert run.stop() == 0
    said(run)
    assert_same(p, far.place.secondary)


def test_of_a_large_file_only_the_change_travels(far):
    p = far.place.primary
    (p / "large").write_bytes(os.urandom(64 << 20))
    assert far.once("--accept-new-host-key").process.returncode == 0
    with open(p / "large", "r+b") as file:
        file.seek(30 << 20)
        file.write(os.urandom(1 << 20))
    run = far.once()
    assert run.process.returncode == 0, run.report()
    assert run.status["bytes_sent"] <= 3 << 20, run.status
    assert_same(p, far.place.secondary)


# ---- a link that breaks


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["auto", pytest.param("rsync", marks=pytest.mark.slow), pytest.param("tar", marks=pytest.mark.slow)],
)
def test_a_server_restarted_in_mid_transfer(own, method):
    p = own.place.primary
    many_small_files(p, 20, 2)
    with own.run("--accept-new-host-key", "--sync-method", method) as run:
        run.wait_idle()
        many_small_files(p / "more", 2000, 20, seed=2)
        (p / "large").write_bytes(os.urandom(100 << 20))
        time.sleep(0.7)
        own.server.stop()
        time.sleep(2)
        own.server.start()
        run.wait_same(90)
        run.wait_idle(60)
        assert run.status["failures"] == 0
        assert run.stop() == 0
    said(run)
    assert_same(p, own.place.secondary)


@pytest.mark.slow
def test_a_server_that_is_down_is_said_and_waited_for(own):
    p = own.place.primary
    many_small_files(p, 20, 2)
    with own.run("--accept-new-host-key") as run:
        run.wait_idle()
        own.server.stop()
        (p / "meanwhile").write_text("meanwhile")
        run.wait_for(lambda: "refuses the connection" in run.status.get("state", ""), "a word of it", 40)
        mark = run.progress()["stime_ns"]
        assert mark < os.stat(p / "meanwhile").st_ctime_ns
        own.server.start()
        run.wait_same(60)
        assert run.stop() == 0
    said(run)


class Knocks:
    """In the place of an sshd: closes each connection, and counts them."""

    def __init__(self, port):
        self._socket = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._run)
        self.number = 0
        self._thread.start()

    def _run(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.number += 1
            connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.mark.slow
def test_a_secondary_that_is_away_costs_one_attempt_at_a_time(own):
    """Hundreds of files wait to be sent, and no task of them tries by itself."""
    p = own.place.primary
    many_small_files(p, 20, 2)
    with own.run("--accept-new-host-key", "--jobs", "4", "--sync-method", "tar") as run:
        run.wait_idle()
        own.server.stop()
        with Knocks(own.server.port) as knocks:
            began = time.monotonic()
            for number in range(600):
                (p / f"f{number}").write_bytes(os.urandom(20_000))
            run.wait_for(lambda: "next try in" in run.status.get("state", ""), "word of it", 40)
            time.sleep(15)
            # Its processes lose it together (7, and each tries once); then 1, 2, 4 … seconds, less half at most.
            assert 2 <= knocks.number <= 7 + math.log2(2 * (time.monotonic() - began) + 1) + 1
        own.server.start()
        run.wait_same(90)
        run.wait_idle(60)
        assert run.status["failures"] == 0
        assert run.stop() == 0
    said(run)


@pytest.mark.slow
def test_it_ends_when_told_to_while_the_server_is_down(own):
    many_small_files(own.place.primary, 20, 2)
    with own.run("--accept-new-host-key") as run:
        run.wait_idle()
        own.server.stop()
        (own.place.primary / "meanwhile").write_text("meanwhile")
        time.sleep(1)
        assert run.stop(signal.SIGINT) == 0
    said(run)


def impatient(far, seconds):
    """Have the session take a silent far side for dead so soon; it must have run once."""
    (path,) = far.place.state.glob("sessions/*/session.toml")
    config = session_file.read(path)
    ssh = msgspec.structs.replace(config.ssh, answer_timeout_s=seconds)
    session_file.write_new(path, msgspec.structs.replace(config, ssh=ssh), "impatient")


def stop_agents(server):
    agents = agents_among(server.pids())
    assert agents
    for pid in agents:
        os.kill(pid, signal.SIGSTOP)


def stop_connections(server):
    for pid in server.pids()[1:]:
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("freeze", [stop_agents, pytest.param(stop_connections, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["auto", pytest.param("rsync", marks=pytest.mark.slow)])
def test_a_far_side_that_freezes_is_replaced(own, freeze, method):
    """In the middle of work, at any point, a transaction too; nobody thaws it."""
    p = own.place.primary
    many_small_files(p, 20, 2)
    assert own.once("--accept-new-host-key").process.returncode == 0
    impatient(own, 4)
    with own.run("--sync-method", method) as run:
        run.wait_idle()
        many_small_files(p / "more", 2000, 20, seed=2)
        (p / "large").write_bytes(os.urandom(60 << 20))
        time.sleep(random.uniform(0.2, 1.2))
        freeze(own.server)
        (p / "later").write_text("later")
        # Whoever connects anew ends those that are frozen, so that nobody may have had to wait for them.
        run.wait_for(
            lambda: (
                any("has not answered for" in s.get("state", "") for s in run.of_type("status"))
                or any("link to the secondary lost" in m["message"] for m in run.of_type("log"))
            ),
            "why",
            30,
        )
        run.wait_same(90)
        run.wait_idle(60)
        assert run.status["failures"] == 0
        assert run.stop() == 0
    said(run)
    assert_same(p, own.place.secondary)


# ---- a far side without root


@pytest.mark.root
def test_a_far_side_without_root_keeps_all_but_owners(place, tmp_path, request):
    """Degraded, as the documentation says: owners and devices are not set; nothing of it fails file by file."""
    server = request.getfixturevalue("ssh_server")
    p = place.primary
    many_small_files(p, 40, 4)
    for number in range(0, 40, 3):
        os.chown(p / f"d{number % 4}" / f"f{number}", 1234, 5678)
    user = f"seamark-test-{os.getpid() % 10000}"
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o005 != 0o005 and len(parent.parts) > 2:
            parent.chmod(parent.stat().st_mode | 0o055)
    subprocess.run(["useradd", "-M", "-d", server.home, "-s", "/bin/sh", "-p", "*", user], check=True)
    try:
        place.secondary.mkdir()
        for path in (place.secondary, server.home, server.temporary):
            shutil.chown(path, user)
        server.authorized_keys.chmod(0o644)
        server.user = user
        far = Far(place, server)
        run = far.once("--accept-new-host-key")
        said(run)
        assert run.process.returncode == 0, run.report()
        # The mark of the root itself stands in trusted.* here and in user.* there.
        differences = [line for line in rsync_differences(p, place.secondary) if not line.endswith(" ./")]
        differences = [line for line in differences if set(line[2:11]) - set(".og")]
        assert differences == []
        (p / "d0" / "later").write_text("later")
        again = far.once()
        assert again.process.returncode == 0, again.report()
        assert again.status["files_done"] == 1, again.status
    finally:
        server.stop()
        subprocess.run(["userdel", user], check=True)
