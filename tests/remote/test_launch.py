"""Links to a stand-in agent, over a real sshd and as a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replication.remote.bundle import shell_command
from replication.remote.errors import AgentFailed, LinkLost, NoPython
from replication.remote.launch import open_secondary
from replication.remote.target import Target
from tests.remote.conftest import make_bundle


def exchange(link, data=b"hello"):
    link.writer.write(data)
    return link.reader.read(len(data))


@pytest.fixture
def link(shared_ssh_server, echo_agent):
    link = open_secondary(shared_ssh_server.target("/srv/x"), shared_ssh_server.options())
    yield link
    link.close()


def test_round_trip_over_ssh(link):
    assert exchange(link) == b"hello"
    data = os.urandom(100_000)
    assert exchange(link, data) == data
    assert link.lost is None
    assert link.stderr_tail() == "echo agent started"


def test_round_trip_as_a_child(echo_agent, tmp_path):
    link = open_secondary(Target(os.fsencode(tmp_path)))
    assert exchange(link) == b"hello"
    link.close()
    assert link.lost
    with pytest.raises(LinkLost):
        exchange(link)


def test_root_of_any_bytes_arrives(shared_ssh_server, replace_agent):
    replace_agent(b"import sys,os\nos.write(1,os.fsencode(sys.argv[2]))\nos.read(0,1)")
    root = b"/srv/new\nline ' \" $HOME `id` \\ %s \xff\xfe !"
    for target, options in (
        (Target(root), None),
        (shared_ssh_server.target(root), shared_ssh_server.options()),
    ):
        link = open_secondary(target, options)
        assert link.reader.read(len(root)) == root
        link.close()


def test_bundle_is_sent_once_and_kept(shared_ssh_server, echo_agent):
    cache = shared_ssh_server.home / ".cache" / "seamark"
    file = cache / f"seamark-secondary-{echo_agent.digest}.pyz"
    file.unlink(missing_ok=True)
    for _ in range(2):
        link = open_secondary(shared_ssh_server.target("/x"), shared_ssh_server.options())
        assert exchange(link) == b"hello"
        link.close()
        first = file.stat()
    assert file.read_bytes() == echo_agent.content
    assert cache.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_ino == first.st_ino
    assert [entry.name for entry in cache.iterdir() if entry.name.startswith("tmp")] == []


def test_a_tampered_bundle_does_not_run_and_is_replaced(shared_ssh_server, echo_agent, tmp_path):
    cache = shared_ssh_server.home / ".cache" / "seamark"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = cache / f"seamark-secondary-{echo_agent.digest}.pyz"
    mark = tmp_path / "evil-ran"
    file.write_bytes(make_bundle(f"open({str(mark)!r}, 'w')".encode()).content)
    link = open_secondary(shared_ssh_server.target("/x"), shared_ssh_server.options())
    assert exchange(link) == b"hello"
    link.close()
    assert not mark.exists()
    assert file.read_bytes() == echo_agent.content


def test_a_cache_that_others_may_write_to_is_not_used(shared_ssh_server, echo_agent):
    cache = shared_ssh_server.home / ".cache" / "seamark"
    cache.mkdir(parents=True, exist_ok=True)
    for file in cache.iterdir():
        file.unlink()
    cache.chmod(0o777)
    try:
        link = open_secondary(shared_ssh_server.target("/x"), shared_ssh_server.options())
        assert exchange(link) == b"hello"
        link.close()
        assert list(cache.iterdir()) == []
    finally:
        cache.chmod(0o700)


def test_home_that_cannot_hold_it(ssh_server, echo_agent):
    ssh_server.home.rmdir()
    ssh_server.home.write_text("not a directory")
    link = open_secondary(ssh_server.target("/x"), ssh_server.options())
    assert exchange(link) == b"hello"
    link.close()


def test_noise_of_a_login_shell(ssh_server, echo_agent, tmp_path):
    """ForceCommand stands for start-up files that talk."""
    noisy = tmp_path / "noisy"
    noisy.write_text(
        "#!/bin/sh\nprintf 'Welcome!\\nseamark-agent is not this\\nno newline at the end of this: '\n"
        'echo noise >&2\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    noisy.chmod(0o755)
    ssh_server.settings["ForceCommand"] = str(noisy)
    ssh_server.restart()
    link = open_secondary(ssh_server.target("/x"), ssh_server.options())
    assert exchange(link) == b"hello"
    link.close()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo This account is currently not available.; exit 1", ["exit status 1", "not available"]),
        ("yes noise", ["noise"]),
        ("echo denied by policy >&2; exit 3", ["exit status 3", "denied by policy"]),
    ],
)
def test_account_that_runs_something_else(ssh_server, echo_agent, command, words):
    ssh_server.settings["ForceCommand"] = command
    ssh_server.restart()
    with pytest.raises(AgentFailed) as caught:
        open_secondary(ssh_server.target("/x"), ssh_server.options())
    assert all(word in caught.value.message for word in words)
    assert len(caught.value.message) < 1300


def test_no_python(ssh_server, echo_agent, tmp_path):
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.6.8 && exit\nexit 1\n')
    old.chmod(0o755)
    for tool in ("sh", "env"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}")
    command = shell_command(make_bundle(b""), [b"serve", b"/x"])
    assert "/usr/bin/python3" in command
    # Whatever this machine has in /usr/bin must not be found either.
    forced = tmp_path / "forced"
    forced.write_text(
        "#!/bin/sh\n"
        "c=$(echo \"$SSH_ORIGINAL_COMMAND\" | sed 's,/usr[^ ]*/bin/python3,/nonexistent/python3,g')\n"
        f'PATH={tmp_path}/bin exec sh -c "$c"\n'
    )
    forced.chmod(0o755)
    ssh_server.settings["ForceCommand"] = str(forced)
    ssh_server.restart()
    with pytest.raises(NoPython) as caught:
        open_secondary(ssh_server.target("/x"), ssh_server.options())
    message = caught.value.message
    assert "has no Python >= 3.9" in message
    assert "python3 is Python 3.6.8" in message
    assert "/usr/bin/python3" in message
    assert "\n" not in message


def test_crash_says_its_real_error(link):
    link.writer.write(b"crash")
    with pytest.raises(LinkLost, match="RuntimeError: disk on fire"):
        link.reader.read(1)
    assert "disk on fire" in link.lost


def test_crash_of_a_child_says_its_real_error(echo_agent, tmp_path):
    link = open_secondary(Target(os.fsencode(tmp_path)))
    link.writer.write(b"crash")
    with pytest.raises(LinkLost, match="RuntimeError: disk on fire"):
        link.reader.read(1)
    link.close()


@pytest.mark.parametrize("remote", [False, True])
def test_frozen_peer_is_noticed(ssh_server, replace_agent, tmp_path, remote):
    replace_agent(b"import os\nos.write(1, b'%9d' % os.getpid())\nwhile os.read(0, 65536): os.write(1, b'x')")
    target = ssh_server.target("/x") if remote else Target(b"/x")
    link = open_secondary(target, ssh_server.options(answer_timeout_s=0.6))
    pid = int(link.reader.read(9))
    time.sleep(0.8)  # silence alone is no sign of death
    link.writer.write(b"a")
    assert link.reader.read(1) == b"x"
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        link.writer.write(b"a")
        with pytest.raises(LinkLost, match="has not answered for 0.6 s"):
            link.reader.read(1)
        assert time.monotonic() - started < 3
        with pytest.raises(LinkLost):
            for _ in range(100):
                link.writer.write(bytes(1 << 20))
    finally:
        os.kill(pid, signal.SIGCONT)
        link.close()


def test_frozen_server_is_noticed(ssh_server, echo_agent):
    link = open_secondary(ssh_server.target("/x"), ssh_server.options(answer_timeout_s=0.6))
    for pid in ssh_server.pids():
        os.kill(pid, signal.SIGSTOP)
    link.writer.write(b"a")
    with pytest.raises(LinkLost, match="has not answered"):
        link.reader.read(1)
    started = time.monotonic()
    link.close()
    assert time.monotonic() - started < 5


def test_server_that_dies_is_noticed_at_once(ssh_server, echo_agent):
    link = open_secondary(ssh_server.target("/x"), ssh_server.options())
    ssh_server.stop()
    started = time.monotonic()
    with pytest.raises(LinkLost):
        link.reader.read(1)
    assert time.monotonic() - started < 5
    link.close()


def test_child_ends_when_its_parent_is_killed(echo_agent, tmp_path):
    code = (
        "import sys, time\n"
        "from replication.remote import launch\nfrom replication.remote.target import Target\n"
        "from tests.remote.conftest import make_bundle\n"
        "b = make_bundle(b'import os\\nos.write(1, b\"%9d\" % os.getpid())\\nwhile os.read(0, 1): pass')\n"
        "launch.build_bundle = lambda: b\n"
        "link = launch.open_secondary(Target(b'/x'))\n"
        "print(int(link.reader.read(9)), flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if ") Z " in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{pid}").exists()
