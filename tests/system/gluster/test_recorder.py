"""The recorder of a Gluster volume by itself: what becomes a record, and what does not."""

from __future__ import annotations

import os
import select
import threading
import time

import pytest

from replication.agent import AgentConfig, AgentRefused, agent_call, run_agent
from replication.bricknode.server import Server
from replication.bricknode.wire import Frames, decode
from replication.changelog.index import State
from replication.changelog.record import Kind
from replication.changelog.store import ChangelogStore
from replication.secondary.protocol import frame
from replication.volume.gluster import GlusterVolume
from replication.volume.identity import ROOT_GFID

pytestmark = pytest.mark.root


@pytest.fixture
def agent(place, own, tmp_path):
    """Records the volume; calling it gives the records since the last call, as (gfid, parent, name)."""
    place.volume(2, **{"changelog.changelog": "on"})
    config = AgentConfig(root=str(own()), directory=str(tmp_path / "changelog"), gluster=place.name)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=run_agent, args=(config, lambda _: None, stop), kwargs={"ready": lambda _: ready.set()}
    )
    thread.start()
    assert ready.wait(30)
    at = 0

    def records():
        nonlocal at
        before, at = at, int(agent_call(config.directory, "barrier")["position"])
        with ChangelogStore(config.directory) as store:
            found = [info for info in store.segments(before) if info.state is State.DATA]
            return {(r.gfid, r.parent, r.name) for info in found for r in store.read(info.number)}

    records()
    yield records
    stop.set()
    thread.join()


def test_the_mark_on_the_root_is_no_change(place, agent):
    """Else an idle volume would be marked because it was replicated, and replicated because it was marked."""
    os.setxattr(place.primary, "trusted.seamark.session.stime", b"1")
    assert agent() == set()
    os.setxattr(place.primary, "user.somebody", b"1")
    assert agent() == {(ROOT_GFID, None, None)}
    os.setxattr(place.primary, "trusted.seamark.session.stime", b"2")
    assert agent() == set()


def test_what_is_recorded_of_a_file(place, agent):
    (place.primary / "file").write_bytes(b"1")
    found = agent()
    assert (None, ROOT_GFID, b"file") in found
    gfid = os.getxattr(place.primary / "file", "glusterfs.gfid")
    agent()
    with open(place.primary / "file", "r+b") as file:
        file.write(b"2")  # its content was recorded before, in the same changelog
    assert (gfid, None, None) in agent()
    assert agent() - {(gfid, None, None)} == set()
    os.rename(place.primary / "file", place.primary / "other")
    assert {(None, ROOT_GFID, b"file"), (None, ROOT_GFID, b"other")} <= agent()


def test_a_directory_that_was_made_is_said_to_be_new_where_one_brick_records(place, own, tmp_path):
    place.volume(1, **{"changelog.changelog": "on"})
    directory = tmp_path / "changelog"
    config = AgentConfig(root=str(own()), directory=str(directory), gluster=place.name)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=run_agent, args=(config, lambda _: None, stop), kwargs={"ready": lambda _: ready.set()}
    )
    thread.start()
    try:
        assert ready.wait(30)
        (place.primary / "new" / "newer").mkdir(parents=True)
        (place.primary / "new" / "file").write_text("1")
        gfids = [os.getxattr(place.primary / name, "glusterfs.gfid") for name in ("new", "new/newer")]
        agent_call(str(directory), "barrier")
        with ChangelogStore(str(directory)) as store:
            found = [info for info in store.segments(0) if info.state is State.DATA]
            records = [record for info in found for record in store.read(info.number)]
        assert [r.gfid for r in records if r.kinds & Kind.B] == gfids
        born = max(n for n, r in enumerate(records) if r.kinds & Kind.B)
        assert born < min(n for n, r in enumerate(records) if r.name == b"file")
    finally:
        stop.set()
        thread.join()


def test_a_symlink_is_found_by_its_gfid(place, own):
    """Not what it leads to: its owner and times change by themselves."""
    root = place.volume(2)
    os.symlink("nowhere", root / "symlink")
    gfid = os.getxattr(root / "symlink", "glusterfs.gfid", follow_symlinks=False)
    volume = GlusterVolume(os.fsencode(own()))
    assert volume.paths_of(gfid) == [b"symlink"]
    os.unlink(root / "symlink")
    assert volume.paths_of(gfid) == []
    volume.close()


def test_while_a_brick_records_nothing_nothing_is_said_to_be_complete(place, agent):
    changelogs = place.node.brick(place.name, 0) / ".glusterfs" / "changelogs"
    changelogs.rename(changelogs.with_name("away"))
    try:
        with pytest.raises(AgentRefused, match="do not record everything"):
            agent()
    finally:
        changelogs.with_name("away").rename(changelogs)
    (place.primary / "file").write_bytes(b"1")
    assert (None, ROOT_GFID, b"file") in agent()


def test_where_all_bricks_of_a_set_ended_together_something_may_be_missing(place, own, tmp_path):
    """Between the same change and its record. One that ended alone left witnesses."""
    place.volume(2, "replica", "2", **{"changelog.changelog": "on", "changelog.rollover-time": "2"})
    config = AgentConfig(root=str(own()), directory=str(tmp_path / "changelog"), gluster=place.name)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=run_agent, args=(config, lambda _: None, stop), kwargs={"ready": lambda _: ready.set()}
    )
    thread.start()

    def gaps():
        with ChangelogStore(config.directory) as store:
            return [info.reason for info in store.segments(0) if info.state is State.GAP]

    try:
        assert ready.wait(30)
        assert gaps() == ["started"]
        (place.primary / "file").write_bytes(b"1")
        place.node.kill_brick(place.name, 1)
        place.node.start_bricks(place.name, 1)
        time.sleep(5)
        assert gaps() == ["started"]
        place.node.ask("volume", "stop", place.name, "force")
        place.node.ask("volume", "start", place.name)
        place.node.wait_for(lambda: gaps()[1:], "a gap")
        assert set(gaps()[1:]) == {"brick restarted"}
    finally:
        stop.set()
        thread.join()


class Node:
    """The program on a node, asked."""

    def __init__(self, volume):
        self.theirs, self.questions = os.pipe()
        self.answers, self.out = os.pipe()
        self.frames = Frames()
        self.thread = threading.Thread(target=Server(volume, self.theirs, self.out).serve)
        self.thread.start()

    def ask(self, **request):
        os.write(self.questions, frame(request))

    def until(self, key):
        """All records that come before an answer, as (gfid, kinds)."""
        records = []
        while True:
            while (got := self.frames.next()) is None:
                assert select.select([self.answers], [], [], 60)[0], key
                self.frames.add(os.read(self.answers, 1 << 16))
            header, payload = got
            records += [(record.gfid, record.kinds) for record in decode(payload)]
            if key in header:
                return records

    def close(self):
        os.close(self.questions)
        self.thread.join()
        for fd in (self.theirs, self.answers, self.out):
            os.close(fd)


def test_what_is_written_after_a_node_told_of_it_and_before_it_is_asked_again(place, own):
    """The record that was told may have been heeded by then: there has to be another one."""
    root = place.volume(1, **{"changelog.changelog": "on", "changelog.rollover-time": "600"})
    own()
    node = Node(place.name)
    try:
        node.ask(op="follow", brick=str(place.node.brick(place.name, 0)), place=None)
        node.until("began")
        with open(root / "file", "wb", buffering=0) as file:
            gfid = os.getxattr(root / "file", "glusterfs.gfid")
            file.write(b"1")
            os.fsync(file.fileno())
            while (gfid, Kind.D) not in node.until("records"):
                pass
            file.write(b"2")
            os.fsync(file.fileno())
        node.ask(op="round", n=1, whole=True)
        assert (gfid, Kind.D) in node.until("round")
        time.sleep(0.1)  # younger, it may change again without another ctime
        node.ask(op="round", n=2, whole=True)
        node.until("round")
        node.ask(op="round", n=3, whole=True)
        assert node.until("round") == []
    finally:
        node.close()
