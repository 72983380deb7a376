from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from replication.remote.errors import HostKeyUnknown, LinkLost, Unreachable
from replication.remote.pool import SecondaryPool
from replication.remote.target import Target


class EchoClient:
    """Just enough of a client: one byte there, one byte back."""

    def __init__(self, link):
        self.link = link
        self.pings = 0
        self.closed = False
        self._lock = threading.Lock()

    def submit(self, op):
        self.pings += 1
        self.echo(b"p")

    def echo(self, byte):
        with self._lock:
            self.link.writer.write(byte)
            return self.link.reader.read(len(byte))

    def close(self):
        self.closed = True


@pytest.fixture
def pool():
    pool = SecondaryPool(EchoClient, first_delay_s=0.05)
    yield pool
    pool.close()


def test_one_link_each_and_one_greeting(pool, shared_ssh_server, echo_agent):
    server, greeted = shared_ssh_server, []
    arguments = (server.target("/x"), server.options(), greeted.append)
    first = pool.get("a", *arguments)
    assert pool.get("a", *arguments) is first
    other = pool.get("b", *arguments)
    assert other is not first
    assert greeted == [first, other]
    assert first.echo(b"x") == b"x"


def test_reconnects_after_the_server_restarts(pool, ssh_server, echo_agent):
    arguments = (ssh_server.target("/x"), ssh_server.options())
    first = pool.get("a", *arguments)
    ssh_server.restart()
    with pytest.raises(LinkLost):
        first.echo(b"x")
    second = pool.get("a", *arguments)
    assert first.closed
    assert second.echo(b"y") == b"y"


def test_backs_off_while_the_server_is_down(pool, ssh_server, echo_agent):
    arguments = (ssh_server.target("/x"), ssh_server.options())
    ssh_server.stop()
    with pytest.raises(Unreachable) as first:
        pool.get("a", *arguments)
    with pytest.raises(Unreachable) as again:
        pool.get("a", *arguments)
    assert again.value is first.value, "tried again at once"
    for _ in range(3):
        with pytest.raises(Unreachable):
            pool.get("a", *arguments, wait_s=5)
    assert pool._slots["a"].failures == 4
    ssh_server.start()
    assert pool.get("a", *arguments, wait_s=5).echo(b"x") == b"x"
    assert pool._slots["a"].failures == 0


def test_a_refused_greeting_closes_the_link(pool, shared_ssh_server, echo_agent):
    seen = []

    def greet(client):
        seen.append(client)
        raise HostKeyUnknown("no")

    with pytest.raises(HostKeyUnknown):
        pool.get("a", shared_ssh_server.target("/x"), shared_ssh_server.options(), greet)
    assert seen[0].closed
    assert seen[0].link.lost


def test_idle_link_that_freezes_is_replaced(pool, ssh_server, replace_agent):
    replace_agent(
        b"import os\nos.write(1, b'%9d' % os.getpid())\nwhile (d := os.read(0, 65536)): os.write(1, d)"
    )
    arguments = (ssh_server.target("/x"), ssh_server.options(answer_timeout_s=0.8))
    client = pool.get("a", *arguments)
    pid = int(client.link.reader.read(9))
    time.sleep(0.7)
    assert client.pings > 0
    assert client.link.lost is None
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 5
    while client.link.lost is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "has not answered" in client.link.lost
    assert pool.get("a", *arguments) is not client
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("remote", [False, True])
def test_forked_child_opens_its_own(pool, shared_ssh_server, echo_agent, remote):
    target = shared_ssh_server.target("/x") if remote else Target(b"/x")
    arguments = (target, shared_ssh_server.options())
    parents = pool.get("a", *arguments)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        signal.alarm(30)
        try:
            client = pool.get("a", *arguments)
            theirs.send(client.echo(b"c") if client is not parents else b"!")
            pool.close()
        finally:
            os._exit(0)
    theirs.close()
    assert ours.recv(1) == b"c"
    os.waitpid(pid, 0)
    ours.close()
    assert parents.echo(b"p") == b"p"
    assert pool.get("a", *arguments) is parents


def test_end_of_the_parents_link_is_seen_though_a_child_lives(
    pool, shared_ssh_server, replace_agent, tmp_path
):
    """A child that kept the descriptors would keep the agent alive."""
    ended = tmp_path / "ended"
    replace_agent(f"import os\nwhile os.read(0, 1): os.write(1, b'x')\nopen({str(ended)!r}, 'w')".encode())
    pool.get("a", Target(b"/x"), shared_ssh_server.options())
    pid = os.fork()
    if not pid:
        time.sleep(20)
        os._exit(0)
    pool.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert ended.exists()
