"""A cascade of three hosts: the first dies, the middle becomes the primary, and the last follows all the while."""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from tests.conftest import need
from tests.hosts import Network
from tests.system.test_cascade import differing
from tests.system.test_failover import NAME, Site, fill, kept, sent

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(2400)]
ON = "on"  # the session from the middle to the last


class Cascade:
    """Sites a, b and c, each a host of its own; `photos` goes from a to b, `on` from b to c."""

    def __init__(self, base):
        self.network = Network()
        self.hosts = [self.network.host(name) for name in "abc"]
        self.a, self.b, self.c = (
            Site(base / name, name, host) for name, host in zip("abc", self.hosts, strict=True)
        )
        self.a.root.mkdir()
        fill(self.a.root, 600, random.Random(5))
        self.a.ok("create", NAME, self.a.root, self.b.address, *self.b.way())
        self.a.ok("start", NAME)
        self.a.monitor()
        self.in_sync(self.a, NAME)
        self.b.ok("create", ON, self.b.root, self.c.address, *self.c.way())
        self.b.ok("start", ON)
        self.b.monitor()
        self.in_sync(self.b, ON)

    def in_sync(self, site, name):
        site.ok("checkpoint", name, "now")
        site.ok("checkpoint", name, "wait", "--timeout", "200s", timeout=300)

    def wait_same(self, one, other, timeout=240):
        until = time.monotonic() + timeout
        while found := differing(one.root, other.root):
            assert time.monotonic() < until, (found[:20], self.log(self.a), self.log(self.b))
            time.sleep(1)

    def log(self, site):
        return (site.base / "monitor.log").read_text()[-2000:]

    def lineage(self):
        """Where what the last one holds comes from."""
        return json.loads((self.c.root / ".seamark" / "owner").read_text())["lineage"]

    def close(self):
        for site in (self.a, self.b, self.c):
            site.kill()
            site.ssh.stop()
        self.network.down()


@pytest.fixture
def cascade(tmp_path):
    need("rsync", "mtree", "sshd")
    made = Cascade(tmp_path)
    yield made
    made.close()


def is_active(site, name):
    found = site.status(name)
    return found["status"] == "Active" and found["healthy"]


def test_the_first_dies_the_middle_is_promoted_and_the_last_follows(cascade):
    a, b, c = cascade.a, cascade.b, cascade.c
    cascade.wait_same(a, c)
    assert len(cascade.lineage()) == 2
    # Live; a rename sends nothing further either.
    before = sent(b, ON)
    inode = os.stat(c.root / "d0001").st_ino
    os.rename(a.root / "d0001", a.root / "moved")
    cascade.wait_same(a, c)
    assert (os.stat(c.root / "moved").st_ino, sent(b, ON)) == (inode, before)
    # The middle is cut off, and what is above and on it goes on.
    cascade.hosts[1].cut()
    try:
        for number in range(50):
            (a.root / "moved" / f"while cut {number}").write_bytes(os.urandom(500))
        time.sleep(5)
    finally:
        cascade.hosts[1].heal()
    cascade.wait_same(a, c)

    (a.root / "last").write_bytes(b"replicated")
    cascade.in_sync(a, NAME)
    a.kill()
    (a.root / "unsent").write_bytes(b"never sent")
    (a.root / "d0000" / "f1").write_bytes(b"the old primary's own")
    assert "is a primary now" in b.ok("failover", b.root, "--yes")
    for number in range(50):
        (b.root / "d0000" / f"written on the middle {number}").write_bytes(os.urandom(500))
    os.rename(b.root / "moved", b.root / "moved again")
    cascade.wait_same(b, c)
    assert os.stat(c.root / "moved again").st_ino == inode
    b.wait_for(lambda: is_active(b, ON), lambda: b.ok("status", ON, "--detail"), 120)
    b.wait_for(lambda: len(cascade.lineage()) == 1, "the last to know that it is the middle's alone", 120)
    # What follows is no way back: the middle is nobody else's secondary.
    refused = b.command("create", "ring", c.root, b.root)
    assert (refused.returncode, "this belongs to session" in refused.stderr) == (8, True), refused

    a.monitor()
    a.wait_for(lambda: "promoted" in a.status().get("reason", ""), "the old primary to know", 120)
    b.ok("failback", b.root, "--to", a.address, *a.way(), "--yes", timeout=300)
    b.wait_for(lambda: NAME in b.ok("list"), "the session back")
    cascade.in_sync(b, NAME)
    cascade.wait_same(b, a)
    cascade.wait_same(b, c)
    assert kept(a.root) == {"unsent": b"never sent", "f1": b"the old primary's own"}
    assert kept(c.root) == kept(b.root) == {}

    b.ok("failback", NAME, "--switch", "--yes", timeout=300)
    (a.root / "d0000" / "from the first again").write_bytes(b"again")
    a.wait_for(
        lambda: (b.root / "d0000" / "from the first again").exists(), lambda: a.ok("status", NAME), 240
    )
    cascade.wait_same(a, c)
    b.wait_for(lambda: len(cascade.lineage()) == 2, "the last to know whose it is", 120)
    b.wait_for(lambda: is_active(b, ON), lambda: b.ok("status", ON, "--detail"), 120)
    assert b.status(ON)["failures"] == 0
