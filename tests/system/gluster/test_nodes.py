"""Volumes whose bricks lie on several nodes, each with a glusterd and an sshd of its own: all bricks are followed."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from replication.bricknode.wire import READY, Frames
from replication.secondary.protocol import frame
from seamark.logs import session_log
from tests.conftest import missing, need
from tests.gluster import Pool, lacking
from tests.judge import assert_same, differences
from tests.scheduler.test_monitor import Node
from tests.system.gluster.test_primary import churn
from tests.system.trees import many_small_files

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    if not os.path.exists("/dev/fuse"):
        pytest.skip("the kernel has no FUSE")
    if why := lacking():
        missing(f"no Gluster: {why}")
    need("sshd", "ssh", "ssh-keygen", "rsync", "mtree")
    with Pool(tmp_path_factory.mktemp("pool"), 3) as made:
        yield made


class Place(Node):
    """A volume over the nodes of a pool, a named session of it, and a monitor on the first node."""

    def __init__(self, pool, base, name):
        super().__init__(base)
        self.environment |= pool.environment
        self.pool, self.name, self.copy = pool, name, base / "copy"
        self.address = ""

    def volume(self, where, *kind, **options):
        self.address = self.pool.volume(self.name, where, *kind, **options)
        self.root = self.pool.nodes[0].mount(self.name)
        return self.root

    def create(self, *options):
        return self.ok(
            "create", "g", self.address, self.copy, "--push-nodes", "--identity", self.pool.identity,
            "--accept-new-host-key", "--set", f"nodes.port={self.pool.port}", *options,
        )  # fmt: skip

    def wait_same(self, timeout=120):
        self.wait_for(
            lambda: not differences(self.root, self.copy), lambda: differences(self.root, self.copy), timeout
        )

    def status(self):
        (line,) = self.ok("status", "g", "--json").splitlines()
        return json.loads(line)

    def bricks(self):
        return [row["status"] for row in self.status()["bricks"]]

    def reason(self, code):
        return next((each["text"] for each in self.status()["reasons"] if each["code"] == code), "")

    def log(self):
        return Path(session_log(str(self.state), "g")).read_text()

    def comparisons(self):
        return self.log().count("hybrid crawl begins")

    def start(self):
        """With a volume that is made: until all that is there is replicated, and all bricks are followed."""
        self.create()
        self.monitor()
        self.ok("start", "g")
        self.wait_for(lambda: set(self.bricks()) and set(self.bricks()) <= {"Active", "Passive"}, self.status)
        self.wait_same()
        self.wait_for_mark()

    def wait_for_mark(self, timeout=120):
        """Until all that has happened so far is said to be on the secondary."""
        now = time.time()
        self.wait_for(
            lambda: (self.status()["last_synced"] or 0) > now,
            lambda: json.dumps(self.status(), indent=1),
            timeout,
        )


@pytest.fixture
def place(pool, tmp_path, request):
    made = Place(pool, tmp_path, "n" + request.node.name.partition("[")[0].encode().hex()[-20:])
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()
    if made.address:
        for where in (pool.nodes[0].base / "mounts").glob(f"{made.name}*"):
            subprocess.run(["umount", "--lazy", where], capture_output=True, check=False)
            where.rmdir()
        pool.delete(made.name)


def test_bricks_of_other_nodes_are_followed(place):
    """A distributed volume, one brick on each of two nodes: what no brick here records arrives at once, and without a scan."""
    root = place.volume([0, 1])
    many_small_files(root / "many", 50, 5)
    said = place.create()
    assert "a key for the bricks of" in said and "does nothing else" in said
    place.monitor()
    place.ok("start", "g")
    place.wait_same()
    place.wait_for(lambda: place.bricks() == ["Active", "Active"], "both to be followed")
    churn(root)
    place.wait_same()
    place.wait_for_mark()
    assert_same(root, place.copy)
    assert place.status()["detector"] == "changelogs"
    assert place.comparisons() == 1, place.log()
    rows = place.status()["bricks"]
    assert [row["node"] for row in rows] == [node.host for node in place.pool.nodes[:2]]
    assert f"{place.pool.nodes[1].host}: reached, 1 bricks, and they record" in place.ok("doctor", "g")


@pytest.mark.slow
def test_a_node_that_cannot_be_asked_holds_the_mark_and_goes_on_where_it_was(place):
    root = place.volume([0, 1])
    place.start()
    server = place.pool.servers[1]
    server.stop()
    place.wait_for(lambda: place.bricks() == ["Active", "Offline"], place.status)
    place.wait_for(lambda: place.reason("bricks"), place.status)
    many_small_files(root / "away", 100, 4)
    os.rename(root / "away" / "d1", root / "away" / "renamed")
    held = place.status()["last_synced"]
    time.sleep(8)
    status = place.status()
    assert status["last_synced"] == held
    assert place.pool.nodes[1].host in place.reason("bricks") and status["bricks"][1]["age_s"] > 5
    said = place.command("doctor", "g").stdout
    assert f"[FAIL] node: {place.pool.nodes[1].host} port {place.pool.port} refuses the connection" in said, (
        said
    )
    server.start()
    place.wait_same()
    place.wait_for_mark()
    assert place.bricks() == ["Active", "Active"] and not place.reason("bricks")
    assert place.comparisons() == 1, place.log()


@pytest.mark.slow
def test_of_a_replica_another_node_is_enough(place):
    """Replica 2 and arbiter on three nodes: one loses its power, and comes back."""
    pool = place.pool
    root = place.volume([0, 1, 2], "replica", "3", "arbiter", "1", **{"network.ping-timeout": "5"})
    place.start()
    assert place.bricks() == ["Active", "Passive", "Passive"]
    pool.servers[1].stop()
    pool.nodes[1].stop()
    many_small_files(root / "away", 50, 4)
    place.wait_same()
    place.wait_for_mark()
    assert place.bricks() == ["Active", "Offline", "Passive"]
    assert not place.reason("bricks")
    pool.nodes[1].start()
    pool.servers[1].start()
    pool.nodes[0].ask("volume", "start", place.name, "force", check=False)
    place.wait_for(lambda: place.bricks() == ["Active", "Passive", "Passive"], place.status, 120)
    (root / "away" / "later").write_text("later")
    place.wait_same()
    place.wait_for_mark()
    assert place.comparisons() == 1, place.log()


@pytest.mark.slow
def test_what_happened_while_the_session_was_stopped_is_read_from_all_nodes(place):
    """Distributed-replicate 2 x 2 on three nodes; the node that Seamark runs on has a brick of the first set only."""
    root = place.volume([0, 1, 1, 2], "replica", "2")
    place.start()
    assert place.bricks() == ["Active", "Passive"] * 2
    place.ok("stop", "g")
    place.wait_for(lambda: place.status()["pid"] is None, place.status)
    assert place.bricks() == ["Stopped"] * 4
    many_small_files(root / "stopped", 100, 4)
    os.rename(root / "stopped" / "d1", root / "stopped" / "renamed")
    place.ok("start", "g")
    place.wait_same()
    churn_a_little(root)
    place.wait_same()
    place.wait_for_mark()
    assert_same(root, place.copy)
    assert place.comparisons() == 1, place.log()


def churn_a_little(root):
    for number in range(20):
        path = root / "stopped" / "d0" / f"f{number}"
        path.write_text("changed")
        os.chmod(path, 0o640)
        os.setxattr(path, "user.colour", b"blue")


@pytest.mark.slow
def test_what_changed_unrecorded_on_another_node_is_found(place):
    """A brick records content once in each of its files: what comes after that shows in the ctime of its own inode."""
    root = place.volume([0, 1], **{"changelog.rollover-time": "60"})
    place.start()
    files = [root / f"file{number}" for number in range(16)]
    for turn in range(6):
        for path in files:
            with open(path, "ab") as file:
                file.write(b"%d\n" % turn)
        time.sleep(2)
    place.wait_same()
    for path in files:  # neither a record, nor a ctime that clients see
        subprocess.run(["fallocate", "--length", "1000000", path], check=True)
    database = place.state / "sessions" / "g" / "progress.sqlite"
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as db, db:
        db.execute("UPDATE brick SET scan_ns = 0")  # the comparison is due
    place.wait_same()
    place.wait_for_mark()


def keys_of(home):
    """Keys that are let in there, and the programs that they start."""
    file = home / ".ssh" / "authorized_keys"
    lines = file.read_text().splitlines() if file.exists() else []
    return lines, sorted(home.glob(".local/share/seamark/*"))


@pytest.mark.slow
def test_the_key_of_nodes_can_follow_bricks_and_nothing_else(place):
    pool = place.pool
    place.volume([0, 1])
    home = pool.servers[1].home
    before = keys_of(home)
    place.create()
    assert keys_of(home) != before
    key = place.state / "sessions" / "g" / "nodes_ed25519"
    node = pool.nodes[1]

    def ask(command, *requests):
        done = subprocess.run(
            ["ssh", "-F", "none", "-oIdentitiesOnly=yes", f"-i{key}", f"-p{pool.port}", "-oBatchMode=yes",
             f"-oUserKnownHostsFile={place.state}/sessions/g/known_hosts", f"root@{node.host}", command],
            input=b"".join(map(frame, requests)), capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    for command in ("id", "", "cat /etc/shadow", f"seamark-bricks 2 {place.name}; id", "seamark-bricks 2 other",
                    f"seamark-bricks 2 {place.name} ../..", f"seamark-agent 4 {b'/'.hex()}"):  # fmt: skip
        code, said, why = ask(command)
        assert (code, said) == (94, b"") and b"refused" in why, (command, code, said, why)
    code, said, why = ask(f"seamark-bricks 3 {place.name}")
    assert code == 94 and b"push-pem" in why
    there, here = node.brick(place.name, 1), pool.nodes[0].brick(place.name, 0)
    paths = ["/etc", str(here), f"{there}/..", f"{there}/../brick1", "", str(there)]
    code, said, _ = ask(
        f"seamark-bricks 2 {place.name}", *({"op": "follow", "brick": path, "place": None} for path in paths),
        {"op": "round", "n": 1, "whole": True}, {"op": "search", "brick": "/etc", "n": 1, "ago_ns": 10**18, "unexplained_ago_ns": 0},
    )  # fmt: skip
    frames = Frames()
    frames.add(said.partition(READY)[2])
    answers = [got[0] for got in iter(frames.next, None)]
    assert code == 0
    assert [(each["brick"], "error" in each) for each in answers[:6]] == [
        (path, path != str(there)) for path in paths
    ]
    assert list(answers[6]["bricks"]) == [str(there)] and len(answers) == 7
    code, _, why = ask(f"seamark-bricks 2 {place.name}", {"op": "read", "path": "/etc/shadow"})
    assert code != 0
    place.ok("delete", "g", "--reset-sync-time")
    assert keys_of(home) == before
    assert ask("seamark-revoke")[0] == 255
