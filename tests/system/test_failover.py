"""When the primary is gone: failover, failback, and the roles turned round again, with two sites over a real sshd."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time

import pytest

from tests.conftest import need
from tests.hosts import HostServer
from tests.judge import assert_same, rsync_differences
from tests.scheduler.test_monitor import Node, _alive, _below
from tests.sshd import SshServer

NAME = "photos"
pytestmark = pytest.mark.timeout(600)


class Site(Node):
    """A node of its own: a directory of data, a state directory, a monitor, and an sshd for the other site."""

    def __init__(self, base, name, host=None):
        base.mkdir()
        super().__init__(base, host.prefix if host is not None else ())
        self.name, self.root = name, base / "data"
        self.environment["SEAMARK_NODE"] = name
        self.ssh = SshServer(base / "sshd") if host is None else HostServer(host, base / "sshd")

    def way(self):
        """Options of a command on the other site that reach this one."""
        return "--ssh-port", self.ssh.port, "--identity", self.ssh.identity, "--accept-new-host-key"

    @property
    def address(self):
        return f"{self.ssh.user}@{self.ssh.host}:{self.root}"

    def status(self, name=NAME):
        return json.loads(self.ok("status", name, "--json").splitlines()[0])

    def kill(self):
        """Everything of this site dies at once."""
        if self.process is None:
            return
        below = [self.process.pid, *_below(self.process.pid)]
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        self.wait_for(lambda: not any(_alive(pid) for pid in below), "the site to be dead")


class Pair:
    """Site a replicates to site b."""

    def __init__(self, base, files=200, push=False, hosts=(None, None)):
        self.a, self.b = (Site(base / name, name, host) for name, host in zip("ab", hosts, strict=True))
        self.a.root.mkdir()
        self.random = random.Random(files)
        fill(self.a.root, files, self.random)
        self.a.ok("create", NAME, self.a.root, self.b.address, *(["push-pem"] if push else []), *self.b.way())
        self.a.ok("start", NAME)
        self.a.monitor()
        self.in_sync(self.a)

    def in_sync(self, site, name=NAME):
        site.ok("checkpoint", name, "now")
        site.ok("checkpoint", name, "wait", "--timeout", "100s")

    def failover(self, *options):
        return self.b.ok("failover", self.b.root, "--yes", *options)

    def failback(self, *options):
        return self.b.ok("failback", self.b.root, "--to", self.a.address, *self.a.way(), "--yes", *options)

    def close(self):
        for site in (self.a, self.b):
            site.kill()
            site.ssh.stop()


def fill(root, count, rng):
    """Files of 1 to 8 KiB in directories of fifty, with some links and symlinks."""
    for number in range(count):
        directory = root / f"d{number // 50:04}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_bytes(rng.randbytes(rng.randrange(1024, 8192)))
        if number % 40 == 0:
            os.link(directory / f"f{number}", directory / f"link{number}")
            os.symlink(f"f{number}", directory / f"symlink{number}")


@pytest.fixture
def pair(tmp_path, request):
    need("rsync", "mtree", "sshd")
    made = Pair(tmp_path, **getattr(request, "param", {}))
    yield made
    made.close()


def sent(site, name=NAME):
    site.wait_for(lambda: "bytes_sent" in site.status(name)["counters"], "the counters of the session")
    return site.status(name)["counters"]["bytes_sent"]


def kept(root):
    """Names and contents of what is in displaced."""
    found = {}
    for directory, _, files in os.walk(root / ".seamark" / "displaced"):
        for name in files:
            with open(os.path.join(directory, name), "rb") as file:
                found[name] = file.read()
    return found


@pytest.mark.parametrize(
    "pair",
    [pytest.param({}, id="own key", marks=pytest.mark.slow), pytest.param({"push": True}, id="push-pem")],
    indirect=True,
)
def test_the_primary_dies_and_comes_back(pair):
    a, b = pair.a, pair.b
    (a.root / "late").write_bytes(b"replicated")
    pair.in_sync(a)
    a.kill()
    # Written after the mark, and never sent.
    (a.root / "d0000" / "f1").write_bytes(b"the old primary's own")
    (a.root / "d0000" / "f2").write_bytes(b"changed on both sides, there")
    (a.root / "unsent").write_bytes(b"never sent")

    shown = b.ok("failover", b.root, "--dry-run")
    assert "photos" in shown and "everything up to then is here" in shown
    assert "promoted" not in json.loads((b.root / ".seamark" / "owner").read_text())
    assert "is a primary now" in pair.failover()
    assert (b.root / "late").read_bytes() == b"replicated"
    (b.root / "d0000" / "f2").write_bytes(b"changed on both sides, here")
    (b.root / "d0000" / "f3").write_bytes(b"changed here alone")
    shutil.rmtree(b.root / "d0002")
    os.rename(b.root / "d0001", b.root / "renamed")

    # The old primary wakes, and is refused.
    a.monitor()
    a.wait_for(
        lambda: "promoted to a primary" in a.status()["reason"],
        lambda: f"a reason: {a.status()['reason']}",
        60,
    )
    assert a.status()["healthy"] is False
    assert (b.root / "d0000" / "f2").read_bytes() == b"changed on both sides, here"

    plan = b.command("failback", b.root, "--to", a.address, *a.way(), "--dry-run", "--json")
    assert plan.returncode == 9, plan.stderr
    plan = json.loads(plan.stdout.splitlines()[0])
    assert plan["conflicts"] == 1
    assert {(f["path"], f["what"], f["conflict"]) for f in plan["findings"]} == {
        ("d0000/f1", "changed", False), ("d0000/f2", "changed", True), ("unsent", "new", False),
    }  # fmt: skip
    assert not (a.root / ".seamark").exists()

    b.monitor()
    said = pair.failback()
    assert "3 objects were displaced" in said
    pair.in_sync(b)
    assert_same(b.root, a.root)
    assert kept(a.root) == {
        "f1": b"the old primary's own", "f2": b"changed on both sides, there", "unsent": b"never sent"
    }  # fmt: skip
    assert sent(b) < 30_000, "only what differs goes back"
    report = [
        json.loads(line)
        for line in (b.state / "sessions" / NAME / "failback.ndjson").read_text().splitlines()
    ]
    assert {row["path"] for row in report} == {"d0000/f1", "d0000/f2", "unsent"}

    # It goes on following, and then the roles are turned round.
    (b.root / "followed").write_bytes(b"live")
    b.wait_for_file(a.root / "followed", b"live".decode())
    assert "is a primary now" in b.ok("failback", NAME, "--switch", "--yes", "--timeout", "100s")
    a.wait_for(lambda: a.status()["healthy"], lambda: f"a to be at work: {a.status()}", 100)
    (a.root / "after").write_bytes(b"from a again")
    a.wait_for_file(b.root / "after", "from a again")
    pair.in_sync(a)
    assert_same(a.root, b.root)
    assert kept(b.root) == {}
    # What b's session would do now is refused by a.
    b.ok("start", NAME)
    b.wait_for(lambda: "promoted" in b.status()["reason"], lambda: f"b to be refused: {b.status()}", 60)


def test_a_planned_failover_loses_nothing(pair):
    """Somebody writes until the very moment; once nobody does, all of it is there."""
    a, b = pair.a, pair.b
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            (a.root / f"live{number}").write_bytes(os.urandom(3000))
            number += 1
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(1)
    stop.set()
    writer.join()
    said = a.ok("failover", NAME, "--planned", "--yes", "--timeout", "100s")
    assert "nothing: all is replicated first" in said
    assert_same(a.root, b.root)
    assert a.status()["status"] == "Stopped"
    b.monitor()
    assert "0 objects were displaced" in pair.failback()
    (b.root / "written").write_text("there")
    b.wait_for_file(a.root / "written", "there")
    pair.in_sync(b)
    assert_same(b.root, a.root)
    b.ok("failback", NAME, "--switch", "--yes", "--timeout", "100s")
    a.ok("start", NAME)
    (a.root / "again").write_text("here")
    a.wait_for_file(b.root / "again", "here")
    pair.in_sync(a)
    assert_same(a.root, b.root)


def test_writers_that_go_on_prevent_a_planned_failover(pair):
    a, b = pair.a, pair.b
    stop = threading.Event()

    def write():
        while not stop.is_set():
            (a.root / "busy").write_bytes(os.urandom(3000))
            time.sleep(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = a.command("failover", NAME, "--planned", "--yes", "--timeout", "50s")
    finally:
        stop.set()
        writer.join()
    assert done.returncode == 5, done
    assert "goes on writing" in done.stderr or "not everything" in done.stderr
    assert "promoted" not in json.loads((b.root / ".seamark" / "owner").read_text())
    assert a.status()["status"] == "Active" or a.wait_for(lambda: a.status()["healthy"], "a to go on") is None
    pair.in_sync(a)
    assert rsync_differences(a.root, b.root) == []


def test_bad_input_is_one_line_and_nothing_is_changed(pair):
    a, b = pair.a, pair.b
    a.ok("stop", NAME)
    for words, code, said in (
        (["failover", "nothing"], 4, "there is no session nothing here (known: photos)"),
        (["failover", b.root / "d0000", "--yes"], 4, "no session has ever replicated to this directory"),
        (["failover", b.root / "none", "--yes"], 4, "there is no such directory"),
        (["failover", b.root, "--planned", "--yes"], 2, "--planned goes with the name of a session"),
        (["failover", NAME, "--planned", "--yes"], 2, "a planned failover drains it first"),
        (["failover", b.root], 2, "nobody is there to be asked: give --yes"),
        (["failback", b.root, "--yes"], 2, "was not promoted: seamark failover"),
        (["failback", a.root, "--yes"], 4, "was never a secondary"),
        (["failback", NAME, "--switch", "--yes"], 4, "was never a secondary"),
        (["failback", b.root / "none"], 4, "there is no such directory"),
    ):
        done = a.command(*words)
        assert done.returncode == code, (words, done)
        assert said in done.stderr, (words, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
    owner = json.loads((b.root / ".seamark" / "owner").read_text())
    assert "promoted" not in owner
    a.ok("start", NAME)
    (a.root / "still").write_text("works")
    a.wait_for_file(b.root / "still", "works")
    done = a.command("failover", NAME, "--yes")
    assert done.returncode == 8 and "give --planned" in done.stderr, done


def test_the_wrong_directory_as_old_primary_is_refused(pair):
    a, b = pair.a, pair.b
    a.kill()
    pair.failover()
    other = a.base / "other"
    other.mkdir()
    (other / "f").write_text("somebody's")
    address = f"{a.ssh.user}@{a.ssh.host}:{other}"
    done = b.command("failback", b.root, "--to", address, *a.way(), "--yes")
    assert done.returncode == 1 and "it is another directory" in done.stderr, done
    assert [path.name for path in other.iterdir()] == ["f"]


def test_a_secondary_that_was_never_complete_is_promoted_only_by_force(tmp_path):
    need("rsync", "mtree", "sshd")
    a, b = Site(tmp_path / "a", "a"), Site(tmp_path / "b", "b")
    try:
        a.root.mkdir()
        fill(a.root, 3000, random.Random(1))
        a.ok("create", NAME, a.root, b.address, *b.way(), "--set", "bandwidth=100k")
        a.ok("start", NAME)
        a.monitor()
        a.wait_for(lambda: (b.root / ".seamark" / "owner").exists(), "the secondary to be taken over")
        a.kill()
        done = b.command("failover", b.root, "--yes")
        assert done.returncode == 1 and "first crawl never ended" in done.stderr, done
        b.ok("failover", b.root, "--yes", "--force")
    finally:
        for site in (a, b):
            site.kill()
            site.ssh.stop()
