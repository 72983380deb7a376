"""Failover and failback where something is in the way: a split network, workers that slept, kills, a full disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import missing, need
from tests.filesystems import available, filesystem
from tests.hosts import Network
from tests.judge import assert_same, rsync_differences
from tests.scheduler.test_monitor import _below
from tests.system.test_failover import NAME, Pair, Site, fill, kept, sent

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def pair(tmp_path):
    need("rsync", "mtree", "sshd")
    made = Pair(tmp_path)
    yield made
    made.close()


class Writer(threading.Thread):
    """Writes, renames and removes below a directory until told to stop."""

    def __init__(self, root, seed):
        super().__init__()
        self.root, self.random, self.number = root, random.Random(seed), 0
        self.ending = threading.Event()

    def run(self):
        self.root.mkdir(exist_ok=True)
        while not self.ending.is_set():
            self.step()
            time.sleep(0.004)

    def step(self):
        self.number += 1
        path = self.root / f"w{self.random.randrange(200)}"
        what = self.random.randrange(10)
        if what < 7 or not path.exists():
            path.write_bytes(self.random.randbytes(self.random.randrange(1, 60_000)))
        elif what < 9:
            path.rename(self.root / f"w{self.random.randrange(200)}")
        else:
            path.unlink()

    def stop(self):
        self.ending.set()
        self.join()


@pytest.mark.root
@pytest.mark.parametrize(
    "asleep",
    [
        "its processes",
        pytest.param("the agents of the secondary", marks=pytest.mark.slow),
        pytest.param("nothing", marks=pytest.mark.slow),
    ],
)
def test_a_split_network_makes_no_second_primary(tmp_path, asleep):
    """The link is cut under load, and what is asleep wakes after the failover: nothing of it reaches the new primary."""
    need("rsync", "mtree", "sshd", "nsenter", "unshare", "ip")
    if os.geteuid() != 0:
        missing("network namespaces need root")
    network = Network()
    try:
        hosts = network.host("a"), network.host("b")
        pair = Pair(tmp_path, hosts=hosts)
        a, b = pair.a, pair.b
        writer = Writer(a.root / "load", 1)
        writer.start()
        time.sleep(3)
        frozen = []
        if asleep == "its processes":
            frozen = [a.process.pid, *_below(a.process.pid)]
        elif asleep == "the agents of the secondary":
            frozen = _agents_on(b.root)
            assert frozen
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        if asleep != "the agents of the secondary":
            hosts[0].cut()
        b.ok("failover", b.root, "--yes")
        (b.root / "here").write_text("written on the new primary")
        shutil.copytree(b.root, tmp_path / "as it was", symlinks=True, ignore=lambda *_: [".seamark"])
        subprocess.run(
            ["rsync", "-aHAXS", "--exclude=/.seamark", f"{b.root}/", tmp_path / "as it was"], check=True
        )
        if asleep != "the agents of the secondary":
            hosts[0].heal()
        for pid in frozen:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                assert asleep == "the agents of the secondary"
        a.wait_for(lambda: "promoted" in a.status()["reason"], lambda: f"a to be told: {a.status()}", 120)
        assert a.status()["healthy"] is False
        time.sleep(3)
        writer.stop()
        assert_same(tmp_path / "as it was", b.root)
        assert rsync_differences(a.root, b.root), "the old primary went on alone"

        b.monitor()
        b.ok("failback", b.root, "--to", a.address, *a.way(), "--yes")
        pair.in_sync(b)
        assert_same(b.root, a.root)
        pair.close()
    finally:
        network.down()


def _agents_on(root):
    """Processes that have something open below the staging of a root."""
    found = []
    below = f"{root}/.seamark/staging"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if any(link.startswith(below) for link in links):
            found.append(int(pid))
    return found


def _killed_after(site, seconds, *words):
    """A command of a site that is killed after some time; whether it ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seamark", *map(str, words)], env=site.environment, cwd="/",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


@pytest.mark.slow
def test_verbs_that_are_killed_are_run_again(pair):
    """Each is killed later and later, until it ends by itself; then everything is as if nothing had been."""
    a, b = pair.a, pair.b
    (a.root / "gone").write_text("replicated")
    pair.in_sync(a)
    a.kill()
    (a.root / "unsent").write_text("never sent")
    (a.root / "d0000" / "f1").write_text("changed there")
    seed = int(os.environ.get("SEED", "7"))
    print(f"SEED={seed}")
    rng = random.Random(seed)
    after = 0.3
    while not _killed_after(b, after, "failover", b.root, "--yes"):
        after += rng.uniform(0.02, 0.15)
    (b.root / "d0000" / "f2").write_text("changed here")
    os.unlink(b.root / "gone")
    b.monitor()
    after = 0.3
    words = ("failback", b.root, "--to", a.address, *a.way(), "--yes")
    while not _killed_after(b, after, *words):
        after += rng.uniform(0.05, 0.2)
    b.ok(*words)  # it may have ended by an error
    pair.in_sync(b)
    assert_same(b.root, a.root)
    assert kept(a.root) == {"unsent": b"never sent", "f1": b"changed there"}
    after = 0.3
    while not _killed_after(b, after, "failback", NAME, "--switch", "--yes", "--timeout", "60s"):
        after += 0.7
        b.ok("start", NAME)
    a.monitor()
    a.wait_for(lambda: a.status()["healthy"], lambda: f"a to be at work: {a.status()}", 150)
    (a.root / "after").write_text("from a again")
    a.wait_for_file(b.root / "after", "from a again")
    pair.in_sync(a)
    assert_same(a.root, b.root)
    assert kept(b.root) == {}


@pytest.mark.slow
@pytest.mark.root
def test_a_disk_that_is_full_in_the_middle_of_a_failback(tmp_path):
    """The old primary's disk has no room for the index, then none for the files: nothing is lost, and it goes on."""
    need("rsync", "mtree", "sshd")
    if why := available("ext4"):
        missing(why)
    with filesystem("ext4", tmp_path / "small", mib=24) as disk:
        small = Pair.__new__(Pair)
        small.a, small.b = Site(tmp_path / "a", "a"), Site(tmp_path / "b", "b")
        small.a.root = disk / "data"
        small.a.root.mkdir()
        try:
            fill(small.a.root, 300, random.Random(2))
            small.a.ok("create", NAME, small.a.root, small.b.address, *small.b.way())
            small.a.ok("start", NAME)
            small.a.monitor()
            small.in_sync(small.a)
            small.a.kill()
            small.failover()
            (small.a.root / "unsent").write_text("never sent")
            (small.b.root / "large").write_bytes(os.urandom(3 << 20))
            full = disk / "full"
            subprocess.run(["dd", "if=/dev/zero", f"of={full}", "bs=64k"], capture_output=True, check=False)
            words = ("failback", small.b.root, "--to", small.a.address, *small.a.way(), "--yes")
            done = small.b.command(*words)
            assert done.returncode == 5 and "no-space" in done.stderr, done
            assert len(done.stderr.splitlines()) == 1
            assert (small.a.root / "unsent").read_text() == "never sent"
            os.truncate(full, full.stat().st_size - (2 << 20))
            small.b.ok(*words)
            small.b.monitor()
            small.b.wait_for(
                lambda: "space" in small.b.status()["reason"], lambda: f"a full disk: {small.b.status()}", 60
            )
            os.unlink(full)
            small.in_sync(small.b)
            assert_same(small.b.root, small.a.root)
            assert kept(small.a.root) == {"unsent": b"never sent"}
        finally:
            small.close()


@pytest.mark.slow
def test_twenty_thousand_files_through_a_whole_disaster(tmp_path):
    """Live load, the primary's host dies, both sides are written, and back: only differences travel, nothing is lost."""
    need("rsync", "mtree", "sshd")
    began = time.monotonic()
    pair = Pair(tmp_path, files=20_000)
    a, b = pair.a, pair.b
    try:
        print(f"20,000 files replicated after {time.monotonic() - began:.1f} s")
        whole = sent(a)
        writer = Writer(a.root / "load", 3)
        writer.start()
        time.sleep(6)
        a.kill()
        time.sleep(1)
        writer.stop()
        (a.root / "d0001" / "f60").write_text("changed there, unsent")
        (a.root / "d0001" / "f61").write_text("changed on both sides, there")
        b.monitor()
        began = time.monotonic()
        print(pair.failover())
        print(f"failover took {time.monotonic() - began:.1f} s")
        (b.root / "d0001" / "f61").write_text("changed on both sides, here")
        size = 0
        for number in range(500):
            content = os.urandom(4000)
            size += len(content)
            (b.root / f"d{number % 400:04}" / f"made{number}").write_bytes(content)
        os.rename(b.root / "d0100", b.root / "renamed")
        shutil.rmtree(b.root / "d0200")
        a.monitor()
        a.wait_for(lambda: "promoted" in a.status()["reason"], lambda: f"a to be told: {a.status()}", 120)
        b.wait_for(
            lambda: b.status()["recorded"]["names"] >= 502, lambda: f"all to be recorded: {b.status()}"
        )
        assert b.status()["recorded"]["at_least"] is False
        began = time.monotonic()
        print(b.command("failback", b.root, "--to", a.address, *a.way(), "--dry-run").stdout)
        print(f"the plan took {time.monotonic() - began:.1f} s")
        before = {path.name: path.read_bytes() for path in (a.root / "load").iterdir()}
        began = time.monotonic()
        print(pair.failback())
        pair.in_sync(b)
        print(f"failback took {time.monotonic() - began:.1f} s")
        assert_same(b.root, a.root)
        back = sent(b)
        load = sum(path.stat().st_size for path in (b.root / "load").iterdir())
        print(
            f"sent: {whole:,} bytes there, {back:,} back; {size:,} of them written since, at most {load:,} of the load"
        )
        assert back < 1.2 * (size + load) + 100_000
        aside = kept(a.root)
        assert aside["f60"] == b"changed there, unsent"
        assert aside["f61"] == b"changed on both sides, there"
        here = {path.name: path.read_bytes() for path in (b.root / "load").iterdir()}
        for name, content in before.items():
            assert content in (here.get(name), aside.get(name)) or content in here.values(), name
        b.ok("verify", NAME, timeout=300)
        b.ok("failback", NAME, "--switch", "--yes", "--timeout", "200s", timeout=300)
        a.wait_for(lambda: a.status()["healthy"], lambda: f"a to be at work: {a.status()}", 200)
        (a.root / "after").write_text("from a again")
        a.wait_for_file(b.root / "after", "from a again")
        pair.in_sync(a)
        assert_same(a.root, b.root)
    finally:
        pair.close()
