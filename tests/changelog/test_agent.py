"""The agent's life: gaps, ticks, barriers, and how it starts and ends."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from replication.agent import (
    Agent,
    AgentConfig,
    AgentRefused,
    AgentUnreachable,
    RecorderUnavailable,
    StoreBusy,
    agent_call,
    run_agent,
)
from replication.changelog.fanotify import fanotify_init
from replication.changelog.record import Kind
from replication.changelog.store import ChangelogStore
from replication.volume.handle import file_handle, open_by_handle
from replication.volume.identity import ROOT_GFID, identify
from tests.changelog.running import recorded, running, snapshot, uncovered
from tests.conftest import missing
from tests.filesystems import available, filesystem

pytestmark = pytest.mark.root
both = pytest.mark.parametrize("detector", ["filesystem", "directories"])


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if why := available("ext4"):
        missing(why)
    with filesystem("ext4", tmp_path_factory.mktemp("disk")) as mount:
        yield mount


@pytest.fixture
def root(disk: Path, tmp_path: Path) -> Iterator[Path]:
    root = disk / tmp_path.name
    root.mkdir()
    yield root
    shutil.rmtree(root)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "log"


def gfid_of(path: Path) -> bytes:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        return identify(fd, os.fsencode(path.name))[0]
    finally:
        os.close(fd)


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@both
def test_kinds_and_paths(root: Path, store: Path, detector: str) -> None:
    (root / "d" / "sub").mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"1")
    with running(root, store, detector=detector) as agent:
        (root / "d" / "f").write_bytes(b"2")
        (root / "d" / "f").chmod(0o600)
        (root / "d" / "new").symlink_to("x")
        (root / "d" / "sub").chmod(0o700)
        found = agent.recorded(0, agent.barrier())
        d, sub = gfid_of(root / "d"), gfid_of(root / "d" / "sub")
        assert found.names[d, b"f"] == Kind.M | Kind.D
        assert found.names[d, b"new"] & Kind.E
        assert found.objects[sub] | found.names[d, b"sub"] == Kind.M
        assert found.paths[d] == b"d"
        assert found.gaps == ["started"]


@both
def test_both_names_of_a_rename_are_in_one_segment(root: Path, store: Path, detector: str) -> None:
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "a" / "f").touch()
    with running(root, store, detector=detector, close_after_ms=1) as agent:
        at = agent.barrier()
        for n in range(60):
            one, other = (
                (root / "a" / "f", root / "b" / "g") if n % 2 == 0 else (root / "b" / "g", root / "a" / "f")
            )
            one.rename(other)
            time.sleep(0.003)
        end = agent.barrier()
        places = {(gfid_of(root / "a"), b"f"), (gfid_of(root / "b"), b"g")}
        for number in range(at + 1, end + 1):
            names = {place for place in recorded(str(store), number - 1, number).names if place in places}
            assert names in (set(), places)


@both
def test_renamed_directories_are_known_by_their_new_path(root: Path, store: Path, detector: str) -> None:
    deep = root / "one" / "two" / "three"
    deep.mkdir(parents=True)
    with running(root, store, detector=detector) as agent:
        (deep / "x").touch()
        at = agent.barrier()
        (root / "one").rename(root / "uno")
        (root / "uno" / "two" / "three" / "y").touch()
        found = agent.recorded(at, agent.barrier())
        gfid = gfid_of(root / "uno" / "two" / "three")
        assert found.names[gfid, b"y"] & Kind.E
        assert found.paths[gfid] == b"uno/two/three"


def test_events_of_a_directory_wait_for_its_rename(root: Path, store: Path) -> None:
    """All in one queue, read at once: what happened below before and after the rename."""
    (root / "one" / "two").mkdir(parents=True)
    with running(root, store, close_after_ms=400) as agent:
        at, before = agent.barrier(), snapshot(root)
        (root / "one" / "two" / "x").touch()
        (root / "one").rename(root / "uno")
        (root / "uno" / "two" / "y").touch()
        (root / "uno" / "two").rename(root / "due")
        (root / "due" / "z").touch()
        (root / "uno").rmdir()
        end = agent.barrier()
        assert not uncovered(before, snapshot(root), agent.recorded(at, end))


def test_what_was_outside_is_looked_at_as_a_whole(root: Path, store: Path, disk: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    outside = disk / "elsewhere"
    with running(root, store) as agent:
        at = agent.barrier()
        (root / "d").rename(outside)
        (outside / "e" / "unseen").touch()
        outside.rename(root / "d")
        found = agent.recorded(at, agent.barrier())
        assert found.names[ROOT_GFID, b"d"] & Kind.D


def test_content_of_a_file_that_was_renamed_since(root: Path, store: Path) -> None:
    (root / "a").write_bytes(b"1")
    with running(root, store) as agent:
        (root / "a").write_bytes(b"2")
        at = agent.barrier()
        (root / "a").rename(root / "b")
        found = agent.recorded(at, agent.barrier())
        assert found.names[ROOT_GFID, b"b"] & Kind.D
        agent_call(store, "retain", upto=agent.barrier())  # all of it is on the secondary now
        (root / "b").rename(root / "c")
        found = agent.recorded(at, agent.barrier())
        assert found.names[ROOT_GFID, b"c"] == Kind.E


def test_what_a_tick_was_applied_for_does_not_forget_what_came_after(root: Path, store: Path) -> None:
    (root / "a").write_bytes(b"1")
    with running(root, store) as agent:
        agent.barrier()
        tick = agent.barrier()
        (root / "a").write_bytes(b"2")
        agent.barrier()
        agent_call(store, "retain", upto=tick)
        (root / "a").rename(root / "b")
        assert agent.recorded(tick, agent.barrier()).names[ROOT_GFID, b"b"] & Kind.D


def test_content_of_a_file_whose_name_is_gone(root: Path, store: Path) -> None:
    (root / "a").write_bytes(b"1")
    (root / "b").hardlink_to(root / "a")
    with running(root, store) as agent:
        (root / "a").write_bytes(b"2")
        agent.barrier()
        (root / "a").unlink()
        found = agent.recorded(0, agent.barrier())
        assert found.objects[gfid_of(root / "b")] & Kind.D


def test_a_write_by_handle(root: Path, store: Path) -> None:
    """Such an inode may have no name in the kernel's cache, and the event none either."""
    (root / "f").write_bytes(b"1")
    gfid = gfid_of(root / "f")
    fd = os.open(root, os.O_RDONLY)
    handle = file_handle(fd, b"f")
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    with running(root, store) as agent:
        at = agent.barrier()
        with os.fdopen(open_by_handle(fd, handle, os.O_WRONLY), "wb") as file:
            file.write(b"2")
        found = agent.recorded(at, agent.barrier())
        assert (found.objects[gfid] | found.names[ROOT_GFID, b"f"]) & Kind.D
    os.close(fd)


@both
def test_our_own_marks_are_not_changes(root: Path, store: Path, detector: str) -> None:
    with running(root, store, detector=detector) as agent:
        (root / "f").touch()
        (root / ".seamark").mkdir()  # which changes the root's times
        at = agent.barrier()
        os.setxattr(root, "user.seamark.stime", b"1")
        (root / ".seamark" / "f").touch()
        (root / ".seamark" / "f").rename(root / ".seamark" / "g")
        (root / ".seamark" / "g").chmod(0o600)
        found = agent.recorded(at, agent.barrier())
        assert not found.names
        assert not found.objects
        os.setxattr(root, "user.other", b"1")
        assert agent.recorded(at, agent.barrier()).objects == {ROOT_GFID: Kind.M}
        root.chmod(0o711)
        at = agent.barrier()
        os.utime(root, (1, 1))
        assert agent.recorded(at, agent.barrier()).objects == {ROOT_GFID: Kind.M}


@both
def test_overflow_is_a_gap_at_its_position(root: Path, store: Path, detector: str) -> None:
    with running(root, store, detector=detector, unlimited_queue=False, close_after_ms=30) as agent:
        (root / "first").touch()
        at = agent.barrier()
        recorder = agent.agent._recorder
        real = recorder.drain
        recorder.drain = lambda _: True  # type: ignore[method-assign]  # a reader that is not scheduled
        for n in range(int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text()) + 100):
            os.close(os.open(root / f"{n}", os.O_CREAT | os.O_WRONLY))
        (root / "0").unlink()
        recorder.drain = real  # type: ignore[method-assign]
        agent.barrier()
        (root / "last").mkdir()
        (root / "last" / "f").touch()
        end = agent.barrier()
        states = [state for _, state in agent.states(at) if state != "tick"]
        assert states.count("overflow") == 1
        assert states[0] == "data"
        assert states[-1] == "data"
        gap = next(number for number, state in agent.states(at) if state == "overflow")
        assert (ROOT_GFID, b"last") in agent.recorded(gap, end).names
        assert (ROOT_GFID, b"first") not in agent.recorded(at, end).names
        assert agent_call(store, "status")["overflows"] == 1


def test_ticks_move_time_on_and_take_one_position(root: Path, store: Path) -> None:
    with running(root, store, tick_s=0.1) as agent:
        (root / "f").touch()
        until(lambda: agent.states()[-1][1] == "tick", 3)
        number = agent.states()[-1][0]
        until(lambda: len([info for info in agent.seen if info.number == number]) > 5)
        assert agent.states()[-1] == (number, "tick")
        assert time.time_ns() - agent.seen[-1].end_ns < 1e9
        (root / "g").touch()
        until(lambda: agent.states(number))
        assert agent.states(number)[0] == (number + 1, "data")


def test_a_barrier_has_everything_before_it(root: Path, store: Path) -> None:
    with running(root, store, close_after_ms=60_000) as agent:
        for n in range(20):
            (root / f"{n}").touch()
            at = agent.barrier()
            with ChangelogStore(store) as held:
                assert [record.name for record in held.read(at)] == [b"%d" % n]
        assert agent.barrier() == at + 1
        assert agent.barrier() == at + 1
        assert agent.states(at) == [(at + 1, "tick")]


def test_a_segment_is_closed_soon(root: Path, store: Path) -> None:
    with running(root, store) as agent:
        at = agent.barrier()
        begun = time.monotonic()
        (root / "f").touch()
        until(lambda: agent.states(at), 2)
        assert time.monotonic() - begun < 0.6
        assert agent.seen[-1].number == at + 1


def test_a_segment_after_a_quiet_time_is_closed_sooner(root: Path, store: Path) -> None:
    """Those that follow it are as far apart as they were asked to be."""
    agent = Agent(AgentConfig(root=os.fspath(root), directory=os.fspath(store), close_after_ms=300), print)
    assert agent._close_at() == math.inf
    agent._opened_at = 100.0
    due = {}
    for agent._closed_at in (-math.inf, 50.0, 99.9, 100.0):
        due[agent._closed_at] = round(agent._close_at(), 3)
    assert due == {-math.inf: 100.1, 50.0: 100.1, 99.9: 100.2, 100.0: 100.3}


def test_a_full_segment_is_closed_at_once(root: Path, store: Path) -> None:
    with running(root, store, max_records=100, close_after_ms=60_000) as agent:
        at = agent.barrier()
        for n in range(1000):
            (root / f"{n}").touch()
        assert len(agent.recorded(at, agent.barrier()).names) == 1000


def test_look_status_and_refusals(root: Path, store: Path) -> None:
    (root / "d").mkdir()
    with running(root, store) as agent:
        at = agent.barrier()
        agent_call(store, "look", dir="d", names=["x", os.fsdecode(b"\xff")], kinds="EM")
        found = agent.recorded(at, agent.barrier())
        d = gfid_of(root / "d")
        assert found.names == {(d, b"x"): Kind.E | Kind.M, (d, b"\xff"): Kind.E | Kind.M}
        at = agent.barrier()
        agent_call(store, "look", dir="", names=[""], kinds="EMD")  # the root, to which no name leads
        found = agent.recorded(at, agent.barrier())
        assert (found.names, found.objects) == ({}, {ROOT_GFID: Kind.M | Kind.D})
        for wrong in ({"dir": "none"}, {"names": ["a/b"]}, {"names": [""]}, {"kinds": "Q"}, {"dir": "../.."}):
            with pytest.raises(AgentRefused):
                agent_call(store, "look", **{"dir": "d", "names": ["x"], "kinds": "E", **wrong})
        with pytest.raises(AgentRefused):
            agent_call(store, "nonsense")
        at = agent.barrier()
        status = agent_call(store, "status")
        assert status["mode"] == "filesystem"
        assert status["rss"] > 1_000_000
        assert status["position"] == at
    with pytest.raises(AgentUnreachable):
        agent_call(store, "status")


def test_the_socket_is_private_and_its_path_may_be_long(root: Path, tmp_path: Path) -> None:
    store = tmp_path / ("x" * 120) / ("y" * 120)
    with running(root, store) as agent:
        assert agent.barrier()
        assert (store / "agent.sock").stat().st_mode & 0o777 == 0o600
    assert not (store / "agent.sock").exists()


def test_every_start_without_proof_is_a_gap(root: Path, store: Path) -> None:
    with running(root, store):
        pass
    (store / "quiet").unlink(missing_ok=True)
    (root / "missed").touch()
    with running(root, store) as agent:
        assert [state for _, state in agent.states() if state != "tick"] == ["started", "agent down"]


def test_a_proof_of_quiet_spares_the_gap(root: Path, store: Path) -> None:
    """The volume is on a disk of its own, and nothing else writes to it."""
    with running(root, store):
        (root / "f").write_bytes(b"1")
    assert (store / "quiet").exists()
    with running(root, store) as agent:
        assert "agent down" not in [state for _, state in agent.states()]
    assert (store / "quiet").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "new").touch(),
        lambda root: os.utime(root / "f"),
        lambda root: (root / "f").write_bytes(b"2"),
        lambda root: ((root / "x").touch(), (root / "x").unlink()),
        lambda root: os.setxattr(root / "f", "user.x", b"1"),
    ],
)
def test_any_change_spoils_the_proof(root: Path, store: Path, change: Callable[[Path], object]) -> None:
    (root / "f").write_bytes(b"1")
    with running(root, store):
        pass
    assert (store / "quiet").exists()
    change(root)
    with running(root, store) as agent:
        assert "agent down" in [state for _, state in agent.states()]


def test_a_killed_agent_leaves_a_gap(root: Path, store: Path) -> None:
    program = (
        "import sys, threading; from replication.agent import *;"
        "run_agent(AgentConfig(root=sys.argv[1], directory=sys.argv[2]), print, threading.Event(),"
        "ready=lambda _mode: print('ready', flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root), str(store)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, ExitStack() as stack:
        stack.callback(process.kill)
        while "ready" not in process.stdout.readline():
            pass
        (root / "f").touch()
        at = int(agent_call(store, "barrier")["position"])
        with pytest.raises(StoreBusy):
            run_agent(AgentConfig(root=str(root), directory=str(store)), lambda _: None, threading.Event())
    with running(root, store) as agent:
        assert [state for _, state in agent.states(at)] == ["agent down"]
        assert (ROOT_GFID, b"f") in agent.recorded(0, at).names


def test_a_full_disk_loses_nothing(root: Path, tmp_path: Path) -> None:
    with filesystem("tmpfs", tmp_path, mib=1) as small:
        store = small / "log"
        with running(root, store, close_after_ms=10) as agent:
            at = agent.barrier()
            with open(small / "filler", "wb", buffering=0) as filler, suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            (root / "while-full").touch()
            with pytest.raises(AgentRefused):
                agent.barrier()
            (small / "filler").unlink()
            (root / "after").touch()
            until(lambda: agent.states(at), 5)
            found = agent.recorded(at, agent.barrier())
            assert {(ROOT_GFID, b"while-full"), (ROOT_GFID, b"after")} <= found.names.keys()
            assert not found.gaps


def test_without_privileges(root: Path, tmp_path: Path) -> None:
    """As nobody: marks on directories, no handles opened, a limited queue."""
    volume = root / "volume"
    (volume / "d" / "e").mkdir(parents=True)
    store = root / "log"
    store.mkdir()
    for path in (root, volume, volume / "d", volume / "d" / "e", store):
        os.chown(path, 65534, 65534)
    program = (
        "import codecs, os, sys, threading; from replication.agent import *; stop = threading.Event();"
        "codecs.lookup('ascii'); os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start();"
        "run_agent(AgentConfig(root=sys.argv[1], directory=sys.argv[2]), lambda _: None, stop,"
        "ready=lambda _mode: print('ready', flush=True))"
    )
    for path in root.parents:  # nobody has to get there
        if "pytest-" in str(path):
            path.chmod(path.stat().st_mode | 0o011)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(volume), str(store)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        assert agent_call(store, "status")["mode"] == "directories"
        at, before = int(agent_call(store, "barrier")["position"]), snapshot(volume)
        (volume / "d").rename(volume / "moved")
        (volume / "moved" / "e" / "f").write_bytes(b"1")
        (volume / "moved" / "x" / "y").mkdir(parents=True)
        (volume / "moved" / "x" / "y" / "z").touch()
        end = int(agent_call(store, "barrier")["position"])
        found = recorded(str(store), at, end)
        assert not uncovered(before, snapshot(volume), found)
        assert found.names[gfid_of(volume / "moved" / "x"), b"y"] & Kind.D  # to be listed
        (volume / "moved" / "x" / "y" / "later").touch()
        found = recorded(str(store), end, int(agent_call(store, "barrier")["position"]))
        assert (gfid_of(volume / "moved" / "x" / "y"), b"later") in found.names


def test_where_nothing_can_be_watched(tmp_path: Path) -> None:
    """A file system without handles has no identities that fanotify could report."""
    with pytest.raises(RecorderUnavailable, match="cannot be watched"):
        run_agent(
            AgentConfig(root="/proc/self/task", directory=str(tmp_path / "log")),
            lambda _: None,
            threading.Event(),
        )


def test_descriptors_are_closed(root: Path, store: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with running(root, store) as agent:
            agent.barrier()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fanotify_init(unlimited=True))
