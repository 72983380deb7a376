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
from replication.changelog import bricktail
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


class Recorded:
    """A volume that is recorded, and what is in the changelog of ours."""

    def __init__(self, name, root, directory, **options):
        self._config = AgentConfig(root=str(root), directory=str(directory), gluster=name, **options)
        self._stop, ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=run_agent,
            args=(self._config, lambda _: None, self._stop),
            kwargs={"ready": lambda _: ready.set()},
        )
        self._thread.start()
        assert ready.wait(30)

    def gaps(self):
        with ChangelogStore(self._config.directory) as store:
            return [info.reason for info in store.segments(0) if info.state is State.GAP]

    def segments(self):
        with ChangelogStore(self._config.directory) as store:
            return [info for info in store.segments(0) if info.state is State.DATA]

    def barrier(self):
        agent_call(self._config.directory, "barrier")

    def objects(self):
        """gfids of those that are to be looked at, or listed."""
        with ChangelogStore(self._config.directory) as store:
            found = [info for info in store.segments(0) if info.state is State.DATA]
            return {record.gfid for info in found for record in store.read(info.number)}

    def end(self):
        self._stop.set()
        self._thread.join()


def test_what_was_recorded_meanwhile_is_complete_only_when_all_of_it_was_read(
    place, own, tmp_path, monkeypatch
):
    """Else the mark would pass what is in later segments."""
    root = place.volume(1, **{"changelog.changelog": "on"})
    mount = own()
    recorded = Recorded(place.name, mount, tmp_path / "changelog")
    (root / "before").write_bytes(b"1")
    recorded.barrier()
    recorded.end()
    known = len(recorded.segments())
    for number in range(20):
        (root / f"file{number}").write_bytes(b"1")
    began_ns = time.time_ns()
    monkeypatch.setattr(bricktail, "_CHUNK", 512)
    recorded = Recorded(place.name, mount, tmp_path / "changelog", max_records=4)
    try:
        recorded.barrier()
        found = recorded.segments()[known:]
        assert recorded.gaps() == ["started"] and len(found) > 3
        assert all(info.end_ns < began_ns for info in found[:-1])
    finally:
        recorded.end()


def killed_in_the_middle(node, name, *bricks):
    """Bricks that were killed after they did something, and before they recorded that: what they did is done here."""
    for number in bricks:
        node.kill_brick(name, number)
    for number in bricks:
        path = node.brick(name, number)
        (path / "changed").write_bytes(b"other")
        (path / "many" / "removed").unlink()
        (path / "old").rename(path / "new")


def test_where_all_bricks_of_a_set_ended_together_what_is_missing_is_searched_for(place, own, tmp_path):
    """What they did between a change and its record. One that ended alone left witnesses."""
    root = place.volume(2, "replica", "2", **{"changelog.changelog": "on", "changelog.rollover-time": "2"})
    for name in ("changed", "many/removed", "many/file", "old", "untouched"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"1234")
    gfids = {name: os.getxattr(root / name, "glusterfs.gfid") for name in os.listdir(root)}
    for number in range(2):  # long ago
        changelogs = place.node.brick(place.name, number) / ".glusterfs" / "changelogs"
        place.node.wait_for(lambda: not has_records(changelogs), "the changelogs to be closed")  # noqa: B023
    recorded = Recorded(place.name, own(), tmp_path / "changelog")
    try:
        assert recorded.gaps() == ["started"]
        (root / "file").write_bytes(b"1")
        place.node.kill_brick(place.name, 1)
        place.node.start_bricks(place.name, 1)
        time.sleep(5)
        killed_in_the_middle(place.node, place.name, 0, 1)
        place.node.start_bricks(place.name, 0, 1)
        wanted = {gfids["changed"], gfids["many"], ROOT_GFID}
        place.node.wait_for(lambda: recorded.objects() >= wanted, "what was not recorded")
        assert recorded.gaps() == ["started"]
    finally:
        recorded.end()


def has_records(changelogs):
    return (changelogs / "CHANGELOG").stat().st_size > 60


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
