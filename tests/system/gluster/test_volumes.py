"""A Gluster volume as the secondary of a Gluster volume: the same objects, with the same gfids."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import pytest

from replication.changelog.brickctimes import handle_of
from replication.errors import SeamarkError
from replication.gluster.glusterd import volume_info
from replication.gluster.gsyncd import xattr_of
from replication.observation import Change, Entry, Inode, Listing
from replication.remote.endpoint import SshOptions
from replication.remote.launch import open_secondary
from replication.remote.look import client_of
from replication.remote.target import parse_target
from replication.secondary import gfids as gfids_of
from replication.secondary import leftovers, mounting, receiver, through, transfers
from replication.secondary.layout import ROOT_GFID
from replication.secondary.metadata import Item, Powers
from replication.secondary.mounting import BASE
from replication.secondary.staged import Staged
from replication.secondary.through import new_file
from tests.conftest import need
from tests.judge import details, differences
from tests.sshd import SshServer
from tests.system.gluster.test_primary import churn
from tests.system.harness import REPOSITORY, agents_among
from tests.system.trees import every_kind_of_thing, many_small_files

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]


def gfids(root):
    """gfid of every object below a mount, by its path."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        if folder == os.fsencode(root):
            folders[:] = [name for name in folders if name not in (b".seamark", b".trashcan")]
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, os.fsencode(root))] = os.getxattr(
                path, "glusterfs.gfid.string", follow_symlinks=False
            )
    return found


def mounted():
    return [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if os.fsdecode(BASE) in line
    ]


class Pair:
    """A volume that is replicated to another one of the same node."""

    def __init__(self, place, monkeypatch):
        self.place, self.node, self.state = place, place.node, place.state
        self.primary = place.volume(2)
        self.name = f"{place.name}-2"
        self.address = self.node.volume(self.name, 2)
        self.environment = {
            **os.environ, **self.node.environment, "PYTHONPATH": str(REPOSITORY), "SEAMARK_STATE_DIR": str(self.state),
        }  # fmt: skip
        monkeypatch.setenv("PATH", self.node.environment["PATH"])

    def run(self, *options, secondary=None, **more):
        return self.place.run(*options, secondary=secondary or self.address, **more)

    def seamark(self, *words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "seamark", *map(str, words)], env=self.environment, capture_output=True, text=True, cwd="/",
            check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def monitor(self):
        with open(self.place.base / "monitor.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "seamark", "monitor"],
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)

    @contextlib.contextmanager
    def seen(self):
        """The secondary as a client sees it that has not looked before: one that has may go on seeing what was there."""
        where = self.node.mount(self.name, f"{self.name}-seen")
        try:
            yield where
        finally:
            subprocess.run(["umount", where], check=True)
            where.rmdir()

    def wait_same(self, run=None, timeout=300):
        until = time.monotonic() + timeout
        while True:
            with self.seen() as where:
                found = differences(self.primary, where)
                held = [
                    *details(found, self.primary, where, *self._bricks()),
                    *(folder for folder, *_ in os.walk(where / ".seamark")),  # which changes meanwhile
                ]
            if not found:
                return
            said = run.report() if run else (self.place.base / "monitor.log").read_text()[-3000:]
            assert time.monotonic() < until, f"still different: {found[:20]}; {held[:100]}; {said}"

    def _bricks(self):
        return [self.node.brick(name, number) for name in (self.place.name, self.name) for number in range(2)]

    def assert_same_objects(self):
        with self.seen() as where:
            found = differences(self.primary, where)
            assert not found, f"{found[:20]}; {details(found, self.primary, where, *self._bricks())}"
            here, there = gfids(self.primary), gfids(where)
        assert here == there, {
            path: (here.get(path), there.get(path)) for path in here if here[path] != there.get(path)
        }

    def client(self):
        """The process that mounts the secondary for Seamark."""
        where = f"{os.fsdecode(BASE)}/{self.node.host}/{self.name}".encode()
        for pid in self.node.processes():
            with contextlib.suppress(OSError):
                if where in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return pid
        return None


@pytest.fixture
def pair(place, monkeypatch):
    made = Pair(place, monkeypatch)
    yield made
    for each in place.runs:
        if each.process.poll() is None:
            each.kill()
    made.node.wait_for(
        lambda: not any(made.node.host in line for line in mounted()), "the secondary's mount to end"
    )
    made.node.delete(made.name)


def test_objects_have_the_gfids_of_the_primary(pair):
    root = pair.primary
    every_kind_of_thing(root)
    many_small_files(root / "many", 40, 5)
    with pair.run() as run:
        run.wait_idle(300)
        pair.assert_same_objects()
        churn(root)
        (root / "many" / "d0" / "f0").write_bytes(os.urandom(5_000_000))  # has two names
        os.rename(root / "many" / "d0" / "f5", root / "many" / "d0" / "f10")  # over another one
        (root / "many" / "d0" / "f5").mkdir()
        pair.wait_same(run)
        run.wait_for(lambda: run.status.get("phase") == "idle", "rest", 300)
        assert run.status["failures"] == 0, run.report()
        assert run.stop() == 0
    pair.assert_same_objects()


def waits_for_lock(fd):
    """Whether somebody waits for the lock of an open file: proc_locks(5)."""
    number = os.fstat(fd).st_ino
    return any(
        f":{number} " in line and " -> " in line for line in Path("/proc/locks").read_text().splitlines()
    )


def lies_on(brick, gfid):
    """Whether a brick has the file itself: not only the pointer of DHT's that says where it is."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(os.lstat(handle_of(os.fspath(brick), gfid)).st_mode) != stat.S_ISVTX
    return False


class Held:
    """A volume of its own that this process holds mounted, as an agent does."""

    def __init__(self, node, name, place):
        self.node, self.name, self.place = node, name, place
        self.where = Path(os.fsdecode(place.mount))
        self._opened = []
        self.gfids = gfids_of.Gfids(place, self.opened(""))

    def opened(self, folder):
        """A descriptor of a directory, which is made."""
        (self.where / folder).mkdir(exist_ok=True)
        self._opened.append(os.open(self.where / folder, os.O_RDONLY))
        return self._opened[-1]

    def agent(self, staging, **more):
        """As much of an agent as makes files aside."""
        return SimpleNamespace(
            gfids=self.gfids, staging_fd=staging, next_staging_name=lambda: os.urandom(4).hex().encode(),
            tree=SimpleNamespace(staging_fd=staging), powers=Powers(), says_alive=lambda: None, busy_with=b"",
            index=SimpleNamespace(inode=lambda gfid: SimpleNamespace(ino=0)), transaction=contextlib.nullcontext, **more,
        )  # fmt: skip

    def close(self):
        os.close(self.gfids._by_gfid_fd)
        for fd in self._opened:
            os.close(fd)


@pytest.fixture
def hold(place):
    def hold(bricks, *kind):
        node.volume(name, bricks, *kind)
        mount = mounting.hold(mounting.place_of(node.host, name, b""))
        shares.append(mount._share)
        held.append(Held(node, name, mount.place))
        return held[0]

    node, name, held, shares = place.node, f"{place.name}-held", [], []
    yield hold
    for each in held:
        each.close()
    for share in shares:
        os.close(share)
    node.wait_for(lambda: not any(name in line for line in mounted()), "the mount to end")
    node.delete(name)


@pytest.mark.slow
def test_a_sync_reaches_each_set_of_bricks_also_those_that_are_added(hold, monkeypatch):
    monkeypatch.setattr(gfids_of, "_JOURNAL_S", 0.01)
    held = hold(4, "replica", "2")
    fd = held.opened("x")

    def sets(files):
        path = held.place.mount + b"/x/"
        found = {os.getxattr(path + each, gfids_of._PATHINFO) for each in files}
        return {re.search(rb"REPLICATE:[^>]*", each)[0] for each in found}

    def reached(gfids):
        gfids.flush(fd)
        (directory,) = os.listdir(held.where / "x")
        return sets(os.fsencode(f"{directory}/{each}") for each in os.listdir(held.where / "x" / directory))

    for _ in range(8):  # the two of a replica do not answer in the same order each time
        gfids = gfids_of.Gfids(held.place, fd)
        assert len(reached(gfids)) == 2
        gfids.close(fd)
        assert not os.listdir(held.where / "x")
    gfids = gfids_of.Gfids(held.place, fd)
    assert len(reached(gfids)) == 2
    held.node.add_bricks(held.name, 4, 5)
    held.node.wait_for(lambda: len(mounting.states(held.place)) == 3, "the bricks that were added")
    assert len(reached(gfids)) == 3
    gfids.close(fd)


@pytest.mark.slow
@pytest.mark.parametrize("bricks", [1, 2])
def test_no_second_object_is_made_of_a_gfid_that_is_there(hold, bricks):
    """Of one brick that brick says so, and nobody asks before."""
    held = hold(bricks)
    assert mounting.is_one_brick(held.place) == (bricks == 1)
    there, staging, gfids = held.opened("there"), held.opened("staging"), held.gfids
    own, taken = [[os.urandom(16) for _ in range(20)] for _ in range(2)]
    for number, gfid in enumerate(taken):
        gfids.make(there, b"%d" % number, gfid, 0o100644)
    agent = held.agent(staging)
    assert [gfids.seen(gfid) is None for gfid in [*own, *taken]] == [True] * 20 + [False] * 20
    assert gfids.refuses_twins() == (bricks == 1)
    if bricks == 1:
        assert [new_file(agent, gfid, 0o100600) for gfid in taken] == [None] * 20
    assert not os.listdir(held.where / "staging")
    for gfid in own:
        fd, made = new_file(agent, gfid, 0o100600)
        assert gfids_of.gfid_at(staging, made) == gfid
        os.close(fd)


def test_a_file_that_cannot_be_written_aside_leaves_its_gfid_free(hold):
    """Who holds a name aside is not asked for it, also not by itself: such a gfid could not be used any more."""
    held = hold(1)
    staging, gfids = held.opened("staging"), held.gfids
    agent, gfid = held.agent(staging), os.urandom(16)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            new_file(agent, gfid, 0o100600)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert not os.listdir(held.where / "staging")
    assert gfids.seen(gfid) is None
    item = Item(gfid.hex(), 1, 0o100644, 0, 0, 5, 5, 5, 5, {})
    for _ in range(2):  # of a new object, and of one that was moved away
        with pytest.raises(FileNotFoundError):
            through._make_right(agent, Staged(item, -1, 0, staging, b"never came"))
        assert not os.listdir(held.where / "staging")
        assert gfids.seen(gfid) is None
        gfids.make(held.opened("there"), b"f", gfid, 0o100644)


@pytest.mark.slow
def test_a_gfid_that_another_agent_takes_while_many_files_are_made_is_not_taken_twice(hold, monkeypatch):
    held = hold(2)
    other, staging, gfids = held.opened("other"), held.opened("staging"), held.gfids
    items = [Item(os.urandom(16).hex(), 1, 0o100644, 0, 0, 5, 5, 5, 5, {}) for _ in range(33)]

    def and_another_agent(agent, gfid, mode):
        if gfid == items[0].gfid:
            gfids.make(other, b"twin", items[32].gfid, 0o100644)  # which the same thread makes later
        return new_file(agent, gfid, mode)

    monkeypatch.setattr(receiver.through, "new_file", and_another_agent)
    agent = held.agent(staging, tmpfile=False)
    staged, errors = [], []
    receiver.stage(agent, [(item, memoryview(b"x")) for item in items], staged, errors)
    assert errors == []
    assert {file.item.gfid: file.is_right for file in staged} == {
        item.gfid: item is not items[32] for item in items
    }
    receiver.close_all(agent, staged)


@pytest.mark.parametrize("what", ["fetched", "removed"])
def test_a_file_under_way_that_a_twin_takes_before_it_is_locked_is_begun_anew(hold, monkeypatch, what):
    """Else what comes would be written into the file that the twin has placed, or there would be two objects of its gfid."""
    held = hold(2)
    there, staging, gfids = held.opened("there"), held.opened("staging"), held.gfids
    agent, gfid = held.agent(staging), os.urandom(16)
    row, name = SimpleNamespace(ino=0, gfid=gfid), gfid.hex().encode() + b".v1"
    lock, locked = fcntl.flock, []

    def after_a_twin(fd, how):
        if how == fcntl.LOCK_EX | fcntl.LOCK_NB and not locked:
            locked.append(fd)
            if what == "fetched":
                gfids.fetch(gfid, there, b"file")
            else:
                transfers._remove_version(agent, name, name)
                through.make_under_way(agent, gfid, name)
        return lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", after_a_twin)
    fd = transfers._open_locked(agent, row, name)
    os.write(fd, b"what came")
    os.close(fd)
    assert (held.where / "staging" / os.fsdecode(name)).read_bytes() == b"what came"
    if what == "fetched":
        assert (held.where / "there" / "file").read_bytes() == b""
    assert sum(lies_on(held.node.brick(held.name, number), gfid) for number in range(2)) == 1


@pytest.mark.parametrize("sweep", [True, False])
def test_a_file_under_way_that_was_begun_anew_is_not_removed_for_the_one_before(hold, monkeypatch, sweep):
    held = hold(2)
    staging, gfids = held.opened("staging"), held.gfids
    agent, gfid = held.agent(staging), os.urandom(16)
    name, lock, locked = gfid.hex().encode() + b".v1", fcntl.flock, []

    def after_a_twin(fd, how):
        if how == fcntl.LOCK_EX | fcntl.LOCK_NB and not locked:
            locked.append(fd)
            os.unlink(name, dir_fd=staging)
            gfids.make(staging, name, gfid, 0o100600)
        return lock(fd, how)

    gfids.make(staging, name, gfid, 0o100600)
    monkeypatch.setattr(fcntl, "flock", after_a_twin)
    if sweep:
        leftovers._remove_old(staging, name, float("-inf"))
    else:
        transfers._remove_version(agent, name, name)
    assert locked
    assert os.listdir(held.where / "staging") == [os.fsdecode(name)]


def test_a_large_file_under_way_that_may_have_lost_pages_goes_on_as_the_object_that_it_is(hold):
    """An agent of before may have it open still. But what was placed is only freed of its name aside."""
    held = hold(2)
    there, staging, gfids = held.opened("there"), held.opened("staging"), held.gfids
    agent, gfid, placed = held.agent(staging), os.urandom(16), os.urandom(16)
    name = gfid.hex().encode() + b".v1"
    for each, of in ((name, gfid), (placed.hex().encode() + b".v1", placed)):
        gfids.make(staging, each, of, 0o100600)
        (held.where / "staging" / os.fsdecode(each)).write_bytes(b"content")
    os.link(placed.hex() + ".v1", "file", src_dir_fd=staging, dst_dir_fd=there)
    with open(held.where / "staging" / os.fsdecode(name), "rb") as before:
        leftovers.drop_transfers(staging, keeps_inodes=True)
        assert os.listdir(held.where / "staging") == [f"{gfid.hex()}.dropped"]
        transfers._remove_other_versions(agent, gfid, name)
        assert os.listdir(held.where / "staging") == [os.fsdecode(name)]
        assert gfids_of.gfid_at(staging, name) == gfid
        (held.where / "staging" / os.fsdecode(name)).write_bytes(b"new")
        assert os.pread(before.fileno(), 9, 0) == b"new"
    assert (held.where / "there" / "file").read_bytes() == b"content"


def be_away_for_a_while(served):
    """Both bricks of it, and its client notices."""
    life = mounting.life(served.place)
    for number in range(2):
        served.node.kill_brick(served.name, number)
    served.wait_for(lambda: mounting.life(served.place) != life, "their end to be seen")
    served.node.start_bricks(served.name, 0, 1)
    served.wait_for(lambda: all(mounting.states(served.place)), "the bricks")


@pytest.fixture
def served(place, monkeypatch):
    """Agents on a volume of its own, the first one's client, and the volume as they have it mounted."""
    monkeypatch.setenv("PATH", place.node.environment["PATH"])
    node, name = place.node, f"{place.name}-served"
    address, links = node.volume(name, 2), []
    volume = mounting.volume_of(mounting.place_of(node.host, name, b""))

    def agents():
        found = Path(os.fsdecode(volume.mount)).glob(".seamark/staging/agent.*")
        return {int(path.name.split(".")[1]) for path in found}

    def another():
        links.append(open_secondary(parse_target(address), SshOptions()))
        client, before = client_of(links[-1]), agents()
        client.hello(session="s", volume="v", epoch=1, create=True)
        (client.pid,) = agents() - before
        return client

    bricks = [node.brick(name, number) for number in range(2)]
    yield SimpleNamespace(
        client=another(),
        another=another,
        place=volume,
        bricks=bricks,
        wait_for=node.wait_for,
        node=node,
        name=name,
    )
    for link in links:
        link.close()
    node.wait_for(lambda: not any(name in line for line in mounted()), "the mount to end")
    node.delete(name)


def test_a_file_that_another_worker_has_aside_is_told_to_be_busy(served):
    """Two are given the same unit: whoever comes second finds the gfid taken, by what is not placed yet."""
    client = served.client
    gfid, made = os.urandom(16), os.urandom(16)
    inode = Inode(gfid, 0o100644, 0, 0, 1, 7, 0, 1, 5, 5, 5)
    symlink = Inode(made, 0o120777, 0, 0, 1, 8, 0, 1, 5, 5, 5)
    client.observe([Listing(ROOT_GFID, [Entry(b"file", inode)])], position=1, limbo_until=1)

    there = served.place
    staging = Path(os.fsdecode(there.mount)) / ".seamark" / "staging"
    (staging / "agent.twin").mkdir()
    root, twin = (os.open(path, os.O_RDONLY) for path in (staging.parent.parent, staging / "agent.twin"))
    fcntl.flock(twin, fcntl.LOCK_EX)
    gfids = gfids_of.Gfids(there, root)
    gfids.make(twin, b"1", gfid, 0o100600)
    gfids.make(twin, b"2", made, 0o120777, target=b"t")

    def send():
        return client.data([[gfid.hex(), 1, 0o100644, 0, 0, 5, 5, 5, 7, {}]], [b"x"])

    def look(position):
        return client.observe(
            [Listing(ROOT_GFID, [Entry(b"link", symlink, b"t")])], position=position, limbo_until=1
        )

    ((of, code, said),) = send()
    assert (of, code) == (gfid.hex(), "busy")
    assert "another worker is at this file" in said
    ((of, code, said),) = look(2).errors
    assert (of, code) == (made.hex(), "busy")
    assert said.startswith("link: ")
    assert "another worker is at this file" in said
    for each in ("1", "2"):
        (staging / "agent.twin" / each).unlink()
    assert send() == []
    assert look(3).errors == []
    os.close(gfids._by_gfid_fd)
    for fd in (root, twin):
        os.close(fd)
    (staging / "agent.twin").rmdir()


def test_a_file_that_comes_along_while_another_worker_has_it_aside_gets_its_gfid(served):
    """Two are given the same look: one has written what came aside, and the other one is first to place what it can."""
    client, gfid = served.client, os.urandom(16)
    where = Path(os.fsdecode(served.place.mount))
    (where / ".seamark" / "staging" / "agent.twin").mkdir()
    root, twin = (
        os.open(path, os.O_RDONLY) for path in (where, where / ".seamark" / "staging" / "agent.twin")
    )
    fcntl.flock(twin, fcntl.LOCK_EX)
    gfids = gfids_of.Gfids(served.place, root)
    gfids.make(twin, b"1", gfid, 0o100600)
    listing = Listing(ROOT_GFID, [Entry(b"file", Inode(gfid, 0o100644, 0, 0, 1, 7, 0, 7, 5, 5, 5))])
    content = [(gfid.hex(), {}, b"content")]
    seen = client.observe([listing], position=1, limbo_until=1, content=content)
    assert seen.need == [(gfid.hex(), "new")]
    os.unlink(b"1", dir_fd=twin)
    assert client.observe([listing], position=1, limbo_until=1, content=content).need == []
    assert (where / "file").read_bytes() == b"content"
    assert os.getxattr(where / "file", gfids_of.GFID) == gfid
    assert client.check() == []
    os.close(gfids._by_gfid_fd)
    for fd in (root, twin):
        os.close(fd)
    (where / ".seamark" / "staging" / "agent.twin").rmdir()


def test_a_file_that_comes_twice_in_a_request_becomes_one_object(served):
    client = served.client
    inodes = [Inode(os.urandom(16), 0o100644, 0, 0, 1, 7 + n, 0, 1, 5, 5, 5) for n in range(32)]
    entries = [Entry(b"%d" % number, inode) for number, inode in enumerate(inodes)]
    client.observe([Listing(ROOT_GFID, entries)], position=1, limbo_until=1)
    rows = [
        [inode.gfid.hex(), 1, 0o100644, 0, 0, 5, 5, 5, inode.ino, {}] for inode in inodes for _ in range(2)
    ]
    assert client.data(rows, [b"x", b"y"] * 32) == []
    for number, inode in enumerate(inodes):
        assert Path(os.fsdecode(served.place.mount), str(number)).read_bytes() == b"y"
        assert sum(lies_on(brick, inode.gfid) for brick in served.bricks) == 1
    assert client.check() == []


def test_what_a_twin_has_just_placed_is_not_taken_away_from_its_names(served):
    """Two are given the same file: one looks what is here, the other one places it, and the first goes on."""
    client, twin = served.client, served.another()
    where = Path(os.fsdecode(served.place.mount))
    gfid = os.urandom(16)
    inode = Inode(gfid, 0o100644, 0, 0, 2, 7, 0, 7, 5, 5, 5)
    names = [b"name", b"link"]
    client.observe([Listing(ROOT_GFID, [Entry(name, inode) for name in names])], position=1, limbo_until=1)
    item = [gfid.hex(), 7, 0o100644, 0, 0, 5, 5, 5, 7, {}]
    (where / client.stage("u-1", [gfid])["path"] / gfid.hex()).write_bytes(b"content")
    twin.call("file_begin", gfid=gfid.hex(), size=7, version="v1")
    twin.call("file_data", b"content", gfid=gfid.hex(), offset=0)
    staging = os.open(where / ".seamark" / "staging", os.O_RDONLY)
    with ThreadPoolExecutor() as threads:
        fcntl.flock(staging, fcntl.LOCK_EX)  # nobody asks for a gfid meanwhile
        committing = threads.submit(client.commit, "u-1", [item])
        served.wait_for(lambda: waits_for_lock(staging), "who comes first to have looked")
        assert twin.call("file_end", gfid=gfid.hex(), item=item, digest=None).header["errors"] == []
        os.close(staging)
        assert committing.result() == []
    for name in names:
        assert (where / os.fsdecode(name)).read_bytes() == b"content"
    assert client.check() == []


def test_a_file_that_is_wanted_again_while_it_is_placed_keeps_its_gfid(served):
    """A twin has placed it, so what came again was written as another object. It is wanted anew when that is to be placed."""
    client, twin = served.client, served.another()
    where = Path(os.fsdecode(served.place.mount))
    gfids = [os.urandom(16) for _ in range(2)]

    def look(position, size):
        inodes = [
            Inode(g, 0o100644, 0, 0, 1, n, 0, size, position, 5, position) for n, g in enumerate(gfids, 7)
        ]
        listing = Listing(ROOT_GFID, [Entry(b"%d" % n, inode) for n, inode in enumerate(inodes)])
        return twin.observe([listing], position=position, limbo_until=1).ticket

    def items(content, ticket):
        numbers = enumerate(gfids, 7)
        return [[g.hex(), len(content), 0o100644, 0, 0, 5, 5, 5, n, {}, None, ticket] for n, g in numbers]

    ticket = look(1, 3)
    new = where / client.stage("u-1", gfids)["path"]
    for gfid in gfids:
        (new / gfid.hex()).write_bytes(b"old")
    assert twin.data(items(b"old", ticket)[:1], [b"old"]) == []
    staging = os.open(where / ".seamark" / "staging", os.O_RDONLY)
    with ThreadPoolExecutor() as threads:
        fcntl.flock(staging, fcntl.LOCK_EX)
        committing = threads.submit(client.commit, "u-1", items(b"old", ticket))
        served.wait_for(lambda: waits_for_lock(staging), "it to have looked at both, and to make the second")
        later = look(2, 7)
        os.close(staging)
        assert [(gfid, code) for gfid, code, _ in committing.result()] == [(gfids[0].hex(), "busy")]
    assert twin.data(items(b"content", later), [b"content"] * 2) == []
    for n, gfid in enumerate(gfids):
        assert (where / str(n)).read_bytes() == b"content"
        assert os.getxattr(where / str(n), gfids_of.GFID) == gfid
    assert client.check() == []


def test_a_large_file_whose_worker_is_killed_as_it_places_it_has_no_link_too_many(served, monkeypatch):
    """Another one goes on with what is there, which is the file itself by now."""
    where, gfid = Path(os.fsdecode(served.place.mount)), os.urandom(16)
    inode = Inode(gfid, 0o100644, 0, 0, 1, 7, 0, 7, 5, 5, 5)
    served.client.observe([Listing(ROOT_GFID, [Entry(b"file", inode)])], position=1, limbo_until=1)
    item = [gfid.hex(), 7, 0o100644, 0, 0, 5, 5, 5, 7, {}]
    monkeypatch.setenv("SEAMARK_FAULT", "commit:2")  # the first is that of its hello
    killed = served.another()
    killed.call("file_begin", gfid=gfid.hex(), size=7, version="v1")
    killed.call("file_data", b"content", gfid=gfid.hex(), offset=0)
    with pytest.raises(SeamarkError):
        killed.call("file_end", gfid=gfid.hex(), item=item, digest=None)
    assert served.client.call("file_begin", gfid=gfid.hex(), size=7, version="v1").header["offset"] == 7
    assert served.client.call("file_end", gfid=gfid.hex(), item=item, digest=None).header["errors"] == []
    assert (where / "file").read_bytes() == b"content"
    assert (where / "file").stat().st_nlink == 1
    assert served.client.check() == []


def test_what_a_killed_worker_has_left_of_a_unit_is_no_link_of_its_files(served):
    """The next one may be given them in other units, or by another engine."""
    where, gfids = Path(os.fsdecode(served.place.mount)), [os.urandom(16) for _ in range(2)]
    inodes = [Inode(gfid, 0o100644, 0, 0, 1, n, 0, 7, 5, 5, 5) for n, gfid in enumerate(gfids)]
    listing = Listing(ROOT_GFID, [Entry(b"%d" % n, inode) for n, inode in enumerate(inodes)])
    served.client.observe([listing], position=1, limbo_until=1)
    rows = [[gfid.hex(), 7, 0o100644, 0, 0, 5, 5, 5, n, {}] for n, gfid in enumerate(gfids)]
    assert served.client.data(rows, [b"content"] * 2) == []

    def links():
        return [(where / str(n)).stat().st_nlink for n in range(2)]

    killed = served.another()
    for n, client in enumerate((killed, served.client)):
        client.stage(f"u-{n}", [gfids[n]])
    assert links() == [2, 2]
    os.kill(killed.pid, signal.SIGKILL)
    served.wait_for(lambda: served.another() and links()[0] == 1, "it to be swept", 20)
    assert links() == [1, 2], "whoever is at it goes on with it"
    assert served.client.commit("u-1", []) == []
    assert links() == [1, 1]


def test_another_version_of_a_large_file_under_way_is_the_object_that_there_is(served):
    """While somebody has the one before open what is made anew of its gfid would be two objects, of which names show either."""
    client, where = served.client, Path(os.fsdecode(served.place.mount))
    inodes = [Inode(os.urandom(16), 0o100644, 0, 0, 1, 7 + n, 0, 7, 5, 5, 5) for n in range(16)]
    listing = Listing(ROOT_GFID, [Entry(b"%d" % n, inode) for n, inode in enumerate(inodes)])
    client.observe([listing], position=1, limbo_until=1)
    with contextlib.ExitStack() as opened:
        for inode in inodes:
            gfid = inode.gfid.hex()
            client.call("file_begin", gfid=gfid, size=7, version="v1")
            client.call("file_data", b"old", gfid=gfid, offset=0)
            opened.enter_context(open(where / ".seamark" / "staging" / f"{gfid}.v1", "rb"))
            assert client.call("file_begin", gfid=gfid, size=7, version="v2").header["offset"] == 0
            client.call("file_data", b"content", gfid=gfid, offset=0)
            item = [gfid, 7, 0o100644, 0, 0, 5, 5, 5, inode.ino, {}]
            assert client.call("file_end", gfid=gfid, item=item, digest=None).header["errors"] == []
            assert sum(lies_on(brick, inode.gfid) for brick in served.bricks) == 1
    for number in range(16):
        assert (where / str(number)).read_bytes() == b"content"
        assert (where / str(number)).stat().st_nlink == 1
    assert client.check() == []


def has_open(pid, name):
    """Whether a process has a file of this name open."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(fd).endswith(f"/{name}"):
                return True
    return False


def test_what_a_twin_writes_while_a_file_is_compared_is_not_believed(served):
    """It is what it should be when it is read, and a twin then writes what it had read of it before."""
    client, twin = served.client, served.another()
    where = Path(os.fsdecode(served.place.mount))
    gfids, size = [os.urandom(16) for _ in range(2)], 1 << 30

    def look(position, change=Change.NONE):
        inodes = [Inode(g, 0o100644, 0, 0, 1, n, 0, 3, 5, 5, position) for n, g in enumerate(gfids, 7)]
        entries = [Entry(name, i, change=change) for name, i in zip((b"file", b"large"), inodes, strict=True)]
        return twin.observe([Listing(ROOT_GFID, entries)], position=position, limbo_until=1)

    def item(number, ticket):
        return [gfids[number].hex(), 3, 0o100644, 0, 0, 5, 5, 9, 7 + number, {}, None, ticket]

    first = look(1).ticket
    for number in range(2):
        assert twin.data([item(number, first)], [b"new"]) == []
    os.truncate(where / "large", size)  # which takes a while
    ticket = look(2, Change.UNKNOWN).ticket
    rows = [
        [gfids[0].hex(), 3, blake2b(b"new", digest_size=32).hexdigest(), item(0, ticket)],
        [gfids[1].hex(), size, "another", item(1, ticket)],
    ]
    with ThreadPoolExecutor() as threads:
        comparing = threads.submit(client.call, "compare", items=rows)
        served.wait_for(lambda: has_open(client.pid, "large"), "the first to be read")
        os.kill(client.pid, signal.SIGSTOP)
        try:
            assert twin.data([item(0, first)], [b"old"]) == []
        finally:
            os.kill(client.pid, signal.SIGCONT)
        assert gfids[0].hex() in comparing.result().header["differ"]
    assert (where / "file").read_bytes() == b"old"
    assert client.call("wanted", gfids=[gfids[0].hex()]).header["wanted"] == [ticket]


def test_what_came_stays_when_its_directory_was_taken_away(served):
    client, where = served.client, Path(os.fsdecode(served.place.mount))
    gfids, numbers = [os.urandom(16) for _ in range(4)], iter(range(1, 9))
    (unit, large), folders = gfids[:2], gfids[2:]
    inodes = [Inode(gfid, 0o100644, 0, 0, 2, n, 0, 7, 5, 5, 5) for n, gfid in enumerate(gfids[:2], 7)]

    def look(parent, entries):
        listing = Listing(parent, [Entry(name, inode) for name, inode in entries])
        client.observe([listing], position=next(numbers), limbo_until=1)

    def item(gfid):
        return [gfid.hex(), 7, 0o100644, 0, 0, 5, 5, 5, 7 + gfids.index(gfid), {}]

    def begin():
        folder = Inode(folders[0], 0o040755, 0, 0, 2, 3, 0, 0, 5, 5, 5)
        look(ROOT_GFID, [(b"d", folder), (b"e", folder._replace(gfid=folders[1], ino=4))])
        look(folders[0], zip((b"unit", b"large"), inodes, strict=True))

    begin()
    look(folders[1], zip((b"unit", b"large"), inodes, strict=True))
    (where / client.stage("u-1", [unit])["path"] / unit.hex()).write_bytes(b"content")
    client.call("file_begin", gfid=large.hex(), size=7, version="v1")
    client.call("file_data", b"content", gfid=large.hex(), offset=0)
    shutil.rmtree(where / "d")
    assert client.commit("u-1", [item(unit)]) == []
    begin()
    shutil.rmtree(where / "d")
    assert client.call("file_end", gfid=large.hex(), item=item(large), digest=None).header["errors"] == []
    for name, gfid in (("unit", unit), ("large", large)):
        assert (where / "e" / name).read_bytes() == b"content"
        assert os.getxattr(where / "e" / name, gfids_of.GFID) == gfid
    assert client.check() == []


@pytest.mark.slow
def test_a_worker_whose_locks_went_with_the_bricks_changes_nothing_any_more(served):
    """It is in the middle of a look when bricks are killed, and started again; then the lock of the root is another one's."""
    where = Path(os.fsdecode(served.place.mount))
    listing = Listing(
        ROOT_GFID, [Entry(b"empty", Inode(os.urandom(16), 0o100644, 0, 0, 1, 7, 0, 0, 5, 5, 5))]
    )
    time.sleep(2)  # the keeper has seen it whole
    staging = os.open(where / ".seamark" / "staging", os.O_RDONLY)
    with ThreadPoolExecutor() as threads:
        fcntl.flock(staging, fcntl.LOCK_EX)
        looking = threads.submit(served.client.observe, [listing], position=1, limbo_until=1)
        served.wait_for(lambda: waits_for_lock(staging), "it to be about to make the file")
        be_away_for_a_while(served)
        other = served.another()
        assert other.call("dirty").header["items"] == []
        os.close(staging)
        with pytest.raises(SeamarkError):
            looking.result()
    assert other.observe([listing], position=1, limbo_until=1).errors == []
    assert (where / "empty").stat().st_nlink == 1
    assert other.check() == []


@pytest.mark.slow
def test_a_worker_whose_locks_went_with_the_bricks_writes_no_file_to_its_end(served):
    """Another one may be writing to it by then."""
    client, gfid = served.client, os.urandom(16)
    where, size = Path(os.fsdecode(served.place.mount)), 512 << 20
    inode = Inode(gfid, 0o100644, 0, 0, 1, 7, 0, 3, 5, 5, 5)
    client.observe([Listing(ROOT_GFID, [Entry(b"large", inode)])], position=1, limbo_until=1)
    assert client.data([[gfid.hex(), 3, 0o100644, 0, 0, 5, 5, 5, 7, {}]], [b"old"]) == []
    seen = Listing(ROOT_GFID, [Entry(b"large", inode._replace(size=size, ctime_ns=6))])
    client.observe([seen], position=2, limbo_until=2)
    with open(where / client.stage("u-1", [gfid])["path"] / gfid.hex(), "wb") as file:
        file.writelines(b"x" * (1 << 20) for _ in range(size >> 20))
    time.sleep(2)  # the keeper has seen it whole
    with ThreadPoolExecutor() as threads:
        committing = threads.submit(
            client.commit, "u-1", [[gfid.hex(), size, 0o100644, 0, 0, 5, 5, 6, 7, {}]]
        )
        served.wait_for(lambda: has_open(client.pid, "large"), "it to be copied")
        os.kill(client.pid, signal.SIGSTOP)
        be_away_for_a_while(served)
        assert (where / "large").stat().st_size < size
        os.kill(client.pid, signal.SIGCONT)
        with pytest.raises(SeamarkError):
            committing.result()
    assert (where / "large").stat().st_size < size


@pytest.mark.slow
def test_what_a_volume_may_have_lost_is_to_its_session_as_after_a_reboot(place, monkeypatch):
    monkeypatch.setenv("PATH", place.node.environment["PATH"])
    node, name = place.node, f"{place.name}-life"
    address = node.volume(name, 2)
    above = Path(os.fsdecode(BASE)) / node.host

    @contextlib.contextmanager
    def agent():
        link = open_secondary(parse_target(address), SshOptions())
        try:
            client = client_of(link)
            client.life = client.hello(session="s", volume="v", epoch=1, create=True)["boot_id"]
            yield client
        finally:
            link.close()

    def until_unmounted():
        node.wait_for(lambda: not any(name in line for line in mounted()), "the mount to end")

    with agent() as client:
        first = client.life
        assert client.call("sync").header["boot_id"] == first
    until_unmounted()
    with agent() as client:
        assert client.life == first, "it had ended in order"
        time.sleep(2)  # the keeper has seen it whole
        node.kill_brick(name, 0)
        node.wait_for(
            lambda: not all(mounting.states(mounting.volume_of(os.fsencode(above / name)))), "its end"
        )
        time.sleep(2)
        node.start_bricks(name, 0)
        node.wait_for(
            lambda: all(mounting.states(mounting.volume_of(os.fsencode(above / name)))), "the brick"
        )
        with pytest.raises(SeamarkError, match="away"):
            client.call("sync")
    with agent() as client:
        second = client.life
        assert second != first
        (here,) = [each for each in above.glob(f"{name}.agent.*") if Path("/proc", each.suffix[1:]).exists()]
        os.kill(int(here.suffix[1:]), signal.SIGKILL)
    until_unmounted()
    with agent() as client:
        assert client.life != second, "what it did last was not flushed"
    until_unmounted()
    node.delete(name)


@pytest.mark.slow
def test_content_of_every_size_and_kind_goes_into_the_object_that_there_is(pair):
    """By each engine, over what was longer, shorter, full of holes, or under two names."""
    root = pair.primary
    draw = random.Random(5)
    names = [f"{kind}{size}" for kind in ("grows", "shrinks", "holes") for size in (100, 100_000, 9_000_000)]
    for name in names:
        (root / name).write_bytes(draw.randbytes(int(name.strip("abcdefghijklmnopqrstuvwxyz"))))
        os.link(root / name, root / f"{name}.link")
    for method in ("stream", "rsync", "tar"):
        with pair.run("--sync-method", method) as run:
            pair.wait_same(run)
            for name in names:
                size = (root / name).stat().st_size
                with open(root / name, "r+b") as file:
                    if "grows" in name:
                        file.seek(size)
                        file.write(draw.randbytes(size))
                    elif "shrinks" in name:
                        file.truncate(size // 2)
                    else:
                        os.posix_fallocate(file.fileno(), 0, 1)
                        file.truncate(0)
                        file.seek(size // 2 + 70_000)
                        file.write(b"end")
                        file.truncate(size + 200_000)
            pair.wait_same(run)
            run.wait_for(lambda: run.status.get("phase") == "idle", "rest", 300)
            assert run.status["failures"] == 0, run.report()
            assert run.stop() == 0
        pair.assert_same_objects()


@pytest.mark.slow
def test_an_agent_that_is_killed_in_mid_batch(pair):
    root = pair.primary
    draw = random.Random(2)
    large = root / "large"
    large.write_bytes(draw.randbytes(20 << 20))
    with pair.run() as run:
        run.wait_for(lambda: run.status, "it to be at work", 300)
        for number in range(6):
            with large.open("r+b") as file:  # a delta, which is written into the file
                for _ in range(40):
                    file.seek(draw.randrange(21 << 20))
                    file.write(draw.randbytes(100))
            many_small_files(root / f"tree{number}", 150, 3, seed=number)
            for name in (root / "tree0").rglob("f*"):
                if name.is_file() and draw.random() < 0.5:
                    name.write_bytes(draw.randbytes(draw.randrange(10, 300_000)))
            if number:
                os.rename(root / f"tree{number - 1}", root / f"moved{number}")
                (root / "tree0").mkdir(exist_ok=True)
            time.sleep(draw.random())
            for pid in agents_among(run.children()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        pair.wait_same(run)
        run.wait_for(lambda: run.status.get("phase") == "idle", "rest", 300)
        assert run.status["failures"] == 0, run.report()
        assert run.stop() == 0
    pair.assert_same_objects()


@pytest.mark.slow
def test_the_volume_is_stopped_and_its_client_is_killed(pair):
    root = pair.primary
    many_small_files(root / "many", 30, 3)
    with pair.run() as run:
        pair.wait_same(run)
        os.kill(pair.client(), signal.SIGKILL)
        many_small_files(root / "more", 30, 3, seed=2)
        pair.wait_same(run)
        pair.node.ask("volume", "stop", pair.name, "force")
        (root / "late").write_text("late")
        run.wait_for(
            lambda: any(pair.name in m.get("message", "") and "volume" in m["message"] for m in run.of_type("log")),
            "a word of the volume", 300,
        )  # fmt: skip
        pair.node.ask("volume", "start", pair.name)
        pair.wait_same(run)
        run.wait_for(lambda: run.status.get("phase") == "idle", "rest", 300)
        run.wait_for(lambda: run.status["failures"] == 0, "no failures", 300)
        assert run.stop() == 0
    pair.assert_same_objects()


class NodesSshServer(SshServer):
    """At the address of a node."""

    def __init__(self, directory, address):
        self.address = address
        super().__init__(directory)

    def new_host_key(self, *kind):
        self.host = self.address
        super().new_host_key(*kind)


@pytest.fixture
def server(pair, tmp_path):
    need("sshd", "ssh", "ssh-keygen")
    made = NodesSshServer(tmp_path / "sshd", pair.node.host)
    yield made
    made.stop()


@pytest.mark.slow
def test_by_ssh_and_a_key_of_its_own_then_verify_and_failover(pair, server):
    root = pair.primary
    every_kind_of_thing(root)
    many_small_files(root / "many", 40, 5)
    address = pair.address.replace("gluster://", f"gluster://{server.user}@")
    way = ["--ssh-port", server.port, "--identity", server.identity, "--accept-new-host-key"]
    said = pair.seamark("create", "g", pair.place.address, address, "push-pem", *way)
    assert "key" in said
    pair.seamark("start", "g")
    with pair.monitor():
        pair.wait_same()
        churn(root)
        pair.wait_same()
        pair.seamark("verify", "g")
        with pair.seen() as where:
            (where / "many").mkdir(exist_ok=True)
            (where / "file").write_text("foreign")
        pair.seamark("verify", "g", code=9)
        pair.seamark("verify", "g", "--repair")
        pair.seamark("verify", "g")
        pair.assert_same_objects()
        pair.seamark("stop", "g")
    said = pair.seamark("failover", "g", "--yes")
    assert f"{address} is a primary now" in said
    pair.assert_same_objects()
    with pair.seen() as where:
        (where / "written after the failover").write_text("new")


@pytest.mark.slow
def test_what_stands_in_a_directory_of_a_volume_is_adopted_though_another_one_has_its_gfids(pair):
    (pair.primary / "file").write_bytes(b"the same")
    with pair.run("--once", secondary=f"{pair.address}/a") as run:
        assert run.wait(300) == 0
    subprocess.run(["rm", "-r", pair.state], check=True)
    with pair.seen() as where:
        (where / "b").mkdir()
        (where / "b" / "file").write_bytes(b"the same")
    with pair.run("--once", "--adopt", secondary=f"{pair.address}/b") as run:
        assert run.wait(300) == 0, run.report()
    with pair.seen() as where:
        assert (where / "a" / "file").read_bytes() == (where / "b" / "file").read_bytes() == b"the same"
        assert not os.listdir(where / "b" / ".seamark" / "displaced")


# ---- gsyncd


@pytest.fixture
def left_by_gsyncd(pair):
    """A secondary with the same objects, and gsyncd's mark on the primary's bricks."""
    root = pair.primary
    many_small_files(root / "many", 60, 6)
    (root / "big").write_bytes(random.Random(1).randbytes(12_000_000))
    os.link(root / "big", root / "big.link")
    os.symlink("big", root / "symlink")
    (root / "also big").write_bytes(random.Random(2).randbytes(3_000_000))
    (root / "z").mkdir()
    os.link(root / "also big", root / "z" / "link")
    with pair.run("--once") as run:
        assert run.wait(300) == 0
    pair.assert_same_objects()
    with pair.seen() as where:
        subprocess.run(["rm", "-r", where / ".seamark"], check=True)
        for name in os.listxattr(where):
            if "seamark" in name:
                os.removexattr(where, name)
    for name in os.listxattr(root):
        if "seamark" in name:
            os.removexattr(root, name)
    subprocess.run(["rm", "-r", pair.state], check=True)
    time.sleep(2.5)  # what a changelog calls one moment
    now = int(time.time())
    time.sleep(1.5)
    name = xattr_of(volume_info(pair.place.name).id, volume_info(pair.name).id)
    for brick in range(2):
        os.setxattr(pair.node.brick(pair.place.name, brick), name, struct.pack(">II", now + brick, 0))
    pair.stime, pair.xattr = now, name
    return pair


@pytest.mark.slow
def test_what_gsyncd_has_replicated_is_taken_over_and_handed_back(left_by_gsyncd):
    pair, root = left_by_gsyncd, left_by_gsyncd.primary
    # What gsyncd has not replicated yet
    (root / "many" / "d0" / "f0").write_bytes(b"x" * 2000)
    os.setxattr(root / "many" / "d1" / "f1", "user.colour", b"blue")  # leaves the ctime as it was
    os.rename(root / "many" / "d2", root / "renamed")
    os.rename(root / "big", root / "renamed" / "big")
    os.rename(root / "also big", root / "renamed" / "also big")  # its other name comes later than its old one
    os.unlink(root / "many" / "d3" / "f3")
    (root / "new").write_text("new")
    said = pair.seamark("create", "g", pair.place.address, pair.address, "--take-over-from-gsyncd")
    assert "gsyncd has replicated everything up to" in said
    pair.seamark("start", "g")
    with pair.monitor():
        pair.wait_same()
        pair.seamark("checkpoint", "g", "now")
        pair.seamark("checkpoint", "g", "wait", "--timeout", "300s")
        pair.assert_same_objects()
        sent = json.loads(pair.seamark("status", "g", "--json").splitlines()[0])["counters"]["bytes_sent"]
        print(f"{sent} bytes sent")
        assert sent < 20_000
        with pair.seen() as where:
            displaced = [
                path.name for path in (where / ".seamark" / "displaced").rglob("*") if path.is_file()
            ]
        assert displaced == ["f3"]
        pair.seamark("verify", "g")
        pair.seamark("stop", "g")
        until = time.monotonic() + 300
        while "g" in pair.seamark("list") and "Stopped" not in pair.seamark("status", "g"):
            assert time.monotonic() < until
        said = pair.seamark("delete", "g", "--hand-back-to-gsyncd")
    assert "gsyncd goes on from" in said
    for brick in range(2):
        value = os.getxattr(pair.node.brick(pair.place.name, brick), pair.xattr)
        assert struct.unpack(">II", value)[0] > pair.stime + 1


def test_no_volume_is_the_secondary_of_itself(place, monkeypatch):
    monkeypatch.setenv("PATH", place.node.environment["PATH"])
    place.volume(1)
    for name in ("a", "b"):
        (place.primary / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "seamark", "create", "g", f"{place.address}/a", f"{place.address}/b"], cwd="/",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SEAMARK_STATE_DIR": str(place.state)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "the same volume" in done.stderr, done.stdout + done.stderr
