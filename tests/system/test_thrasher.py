"""Some seeds of the thrasher, and that its witness sees what is wrong. The long run: python -m tests.system.thrash."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tests.conftest import missing, need
from tests.filesystems import available, filesystem
from tests.servers import wait_until
from tests.system.thrash.plan import plan, wanting
from tests.system.thrash.run import play
from tests.system.thrash.stage import Broker
from tests.system.thrash.wire import Wire
from tests.system.thrash.witness import Comparison

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _tools():
    need("rsync", "mtree", "btrfs", "git", "sshd")
    for kind in ("btrfs", "xfs", "ext4"):
        if reason := available(kind):
            missing(reason)


def ends_well(seed, seconds, tmp_path):
    made = plan(seed, seconds)
    if reason := wanting(made):
        missing(reason)
    print(f"seed {seed} for {seconds} s: {made}")
    result = play(seed, seconds, tmp_path)
    print(result.line())
    assert not result.wrong, (result.wrong, result.kept)


@pytest.mark.parametrize("seed", [8, *(pytest.param(each, marks=pytest.mark.slow) for each in (22, 34))])
def test_a_seed(seed, tmp_path):
    ends_well(seed, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1012))
def test_a_longer_seed(seed, tmp_path):
    ends_well(seed, 10, tmp_path)


def test_a_seed_always_means_the_same():
    assert plan(7, 10) == plan(7, 10)
    assert len({str(plan(seed, 10)) for seed in range(100)}) > 30


# ---- the faults that are more than a signal


def test_an_old_dump_comes_back(tmp_path):
    broker = Broker(tmp_path / "broker")
    try:
        with redis.Redis(port=broker.port, retry=Retry(ConstantBackoff(0.1), 100)) as client:
            for number in (1, 2):
                client.set("it was", number)
                old = broker.keep(client)
                client.set("it was", "later")
                broker.bring_back(old)
                assert client.get("it was") == b"%d" % number
            broker.kill()
            broker.start()
            assert client.get("it was") is None
    finally:
        broker.kill()


@pytest.fixture
def wire():
    """A wire to a server that takes whatever comes. ``taken``: what came by each connection that ended."""
    taken = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # it is closed
                return
            got = b""
            with connection, contextlib.suppress(OSError):
                while data := connection.recv(1 << 16):
                    got += data
                    connection.send(b"1")
            taken.append(got)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        made = Wire(server.getsockname()[1])
        made.taken = taken
        yield made
        made.close()


def _sent_by(wire, size):
    """What the server has of so many bytes that were sent in pieces, each of which is answered."""
    seen = len(wire.taken)
    with socket.create_connection(("127.0.0.1", wire.port)) as client, contextlib.suppress(OSError):
        for at in range(0, size, 100):
            client.sendall(bytes(min(100, size - at)))
            if not client.recv(1):
                break
    wait_until(lambda: len(wire.taken) > seen, "the end of the connection", 10)
    return len(wire.taken[-1])


def test_the_wire_cuts_in_the_middle(wire):
    assert _sent_by(wire, 1000) == 1000
    wire.cut_after(550)  # with five answers
    assert _sent_by(wire, 1000) == 545
    assert _sent_by(wire, 1000) == 1000
    assert wire.cuts == 1


def test_the_wire_cuts_what_is_idle(wire):
    with socket.create_connection(("127.0.0.1", wire.port)) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"1"
        wire.cut_now()  # was not asked for
        client.sendall(b"x")
        assert client.recv(1) == b"1"
        wire.cut_after(1 << 30)
        wire.cut_now()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert wire.cuts == 1


# ---- the witness


@pytest.fixture
def volumes(tmp_path):
    """A primary with a snapshot, a copy that is right, and the time before the snapshot."""
    with filesystem("btrfs", tmp_path) as primary:
        for directory in ("a", "b", "b/c"):
            (primary / directory).mkdir()
            for number in range(3):
                (primary / directory / f"f{number}").write_text(f"{directory} {number}")
        (primary / "a" / "link").symlink_to("f1")
        subprocess.run(["cp", "-a", primary, tmp_path / "copy"], check=True)
        (primary / ".seamark").mkdir()
        time.sleep(0.2)
        before_ns = time.time_ns()
        subprocess.run(
            ["btrfs", "subvolume", "snapshot", "-r", primary, primary / ".seamark" / "s"],
            check=True,
            capture_output=True,
        )
        yield primary, tmp_path / "copy", primary / ".seamark" / "s", before_ns


def compared(volumes):
    primary, copy, snapshot, before_ns = volumes
    return Comparison(snapshot, primary, copy, before_ns).run()


def test_the_witness_finds_a_right_copy_right(volumes):
    found = compared(volumes)
    assert (found.compared, found.names, found.mismatches) == (13, 4, [])


def _rewrite(path):
    before = path.stat()
    path.write_text("XXX")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda copy: (copy / "b" / "c" / "f1").unlink(),
        lambda copy: (copy / "b" / "never").touch(),
        lambda copy: _rewrite(copy / "a" / "f0"),
        lambda copy: (copy / "a").chmod(0o700),
        lambda copy: os.utime(copy / "a" / "f1", ns=(1, 1)),
        lambda copy: os.setxattr(copy / "b" / "f2", "user.x", b"y"),
        lambda copy: os.rename(copy / "b", copy / "moved"),
    ],
)
def test_the_witness_sees_what_is_wrong(volumes, spoil):
    spoil(volumes[1])
    assert compared(volumes).mismatches


def test_the_witness_blames_nobody_for_what_changes(volumes):
    primary, copy, *_ = volumes
    (primary / "a" / "f0").write_text("later")
    os.rename(primary / "b", primary / "away")
    os.rename(primary / "away", primary / "b")
    shutil.rmtree(copy / "b")
    (copy / "a" / "f0").unlink()
    (copy / "a" / "f1").unlink()
    found = compared(volumes)
    assert len(found.mismatches) == 2  # the names of `a`, and f1: both were left alone on the primary
    assert all("/a" in line for line in found.mismatches)
