"""The Redis of our own: private, expendable, gone with its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import redis

from replication.errors import TemporaryError, UsageError
from scheduler import redis_server as module
from scheduler.redis_server import MAX_SOCKET_PATH, EmbeddedRedis, RedisServerError
from scheduler.server_check import ServerError, check_broker


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not _alive(pid):
            return True
        time.sleep(0.02)
    return False


def test_listens_on_a_private_socket_and_nowhere_else(tmp_path):
    with EmbeddedRedis(tmp_path / "redis") as server, server.client() as client:
        assert client.ping()
        assert client.config_get("port")["port"] == "0"
        assert client.config_get("save")["save"] == ""
        assert client.config_get("appendonly")["appendonly"] == "no"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert stat.S_IMODE(os.stat(tmp_path / "redis").st_mode) == 0o700
        assert stat.S_IMODE(os.stat(server.socket_path).st_mode) & 0o077 == 0
        listening = subprocess.run(["cat", f"/proc/{server.pid}/net/tcp"], capture_output=True, check=True)
        inodes = {os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{server.pid}/fd")}
        tcp = {f"socket:[{line.split()[9]}]" for line in listening.stdout.decode().splitlines()[1:]}
        assert not inodes & tcp


def test_the_url_is_understood_by_kombu(tmp_path):
    from kombu import Connection

    with EmbeddedRedis(tmp_path / "a dir with spaces") as server, Connection(server.url) as connection:
        queue = connection.SimpleQueue("q")
        queue.put({"n": 1})
        assert queue.get(timeout=5).payload == {"n": 1}
        queue.close()


def test_restart_is_told_and_keeps_the_address(tmp_path):
    with EmbeddedRedis(tmp_path) as server:
        url = server.url
        assert not server.ensure()
        os.kill(server.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10  # the leader is a zombie before its threads are gone
        while server.is_running() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.ensure()
        assert server.url == url
        with server.client() as client:
            assert client.ping()


def test_stop_leaves_nothing_behind_and_can_be_repeated(tmp_path):
    server = EmbeddedRedis(tmp_path)
    server.start()
    server.wait_ready()
    pid = server.pid
    server.stop()
    server.stop()
    assert not _alive(pid)
    assert not os.path.exists(server.socket_path)
    with pytest.raises(redis.ConnectionError), server.client() as client:
        client.ping()


def test_a_long_directory_gets_a_short_private_socket(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    with EmbeddedRedis(deep) as server:
        socket_dir = os.path.dirname(server.socket_path)
        assert len(server.socket_path) <= MAX_SOCKET_PATH
        assert stat.S_IMODE(os.stat(socket_dir).st_mode) == 0o700
        with server.client() as client:
            assert client.ping()
    assert not os.path.exists(socket_dir)


def test_a_squatter_in_tmp_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    expected = module._short_private_dir("/some/where")
    os.rmdir(expected)
    os.symlink(tmp_path, expected)
    other = module._short_private_dir("/some/where")
    assert other != expected
    assert stat.S_IMODE(os.stat(other).st_mode) == 0o700


@contextlib.contextmanager
def of_another_process(directory):
    """A server in ``directory`` that another process has started: that process, and the server's id."""
    code = (
        "import sys, time\n"
        "from scheduler.redis_server import EmbeddedRedis\n"
        "server = EmbeddedRedis(sys.argv[1]); server.start(); server.wait_ready()\n"
        "print(server.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert _alive(pid)
        yield parent, pid


def test_ends_when_its_parent_is_killed(tmp_path):
    with of_another_process(tmp_path) as (parent, pid):
        parent.kill()
    assert _wait_until_gone(pid)


def test_one_that_stands_still_when_its_parent_is_killed_does_not_take_the_next_ones_socket(tmp_path):
    with of_another_process(tmp_path) as (parent, pid):
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
        with EmbeddedRedis(tmp_path) as server:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            assert _wait_until_gone(pid)
            assert server.answers()


@pytest.mark.parametrize("long", [False, True])
def test_one_that_nobody_can_reach_is_started_again(tmp_path, monkeypatch, long):
    """As somebody who tidies up /tmp leaves it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    directory = tmp_path / ("long" * 30) if long else tmp_path
    with EmbeddedRedis(directory) as server:
        assert not server.ensure()
        old, url = server.pid, server.url
        os.unlink(server.socket_path)
        if long:
            os.rmdir(os.path.dirname(server.socket_path))
        assert server.ensure()
        assert server.url == url
        assert server.pid != old
        assert server.answers()
    assert _wait_until_gone(old)


def test_survives_the_terminals_interrupt(tmp_path):
    with EmbeddedRedis(tmp_path) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_a_broker_that_is_there_is_accepted(tmp_path):
    with EmbeddedRedis(tmp_path) as server:
        check_broker(server.url)


def test_a_broker_that_is_not_there_may_come_back(tmp_path):
    for url in (f"redis+socket://{tmp_path}/none", "redis://:pass@127.0.0.1:1/0"):
        with pytest.raises(TemporaryError) as caught:
            check_broker(url)
        assert "pass" not in caught.value.message


def test_a_broker_that_lets_us_not_in_is_an_error(tmp_path, monkeypatch):
    arguments = EmbeddedRedis._arguments
    monkeypatch.setattr(
        EmbeddedRedis, "_arguments", lambda self: [*arguments(self), "--requirepass", "right"]
    )
    server = EmbeddedRedis(tmp_path)
    server.start()
    try:
        deadline = time.monotonic() + 10
        while not os.path.exists(server.socket_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ServerError, match="wants a password"):
            check_broker(server.url)
    finally:
        server.stop()


def test_a_broker_address_that_is_none_is_wrong_usage():
    with pytest.raises(UsageError):
        check_broker("redis://host:port/0")


def test_no_server_binary_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_candidates", lambda: iter(["/nonexistent", "/bin/false"]))
    with pytest.raises(RedisServerError, match="install redis-server or valkey-server"):
        EmbeddedRedis(tmp_path).start()


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RedisServerError, match="cannot start Redis in"):
        EmbeddedRedis(tmp_path / "file" / "redis").start()


def test_a_server_that_ends_at_once_is_told_with_its_last_word(tmp_path, monkeypatch):
    monkeypatch.setattr(EmbeddedRedis, "_arguments", lambda self: ["--no-such-option", "1"])
    server = EmbeddedRedis(tmp_path)
    server.start()
    with pytest.raises(RedisServerError, match="ended at its start: .+"):
        server.wait_ready()
    server.stop()


def test_the_systems_server_does_as_well(tmp_path, monkeypatch):
    from tests.conftest import need

    need("redis-server")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: None)
    with EmbeddedRedis(tmp_path) as server, server.client() as client:
        assert client.ping()
