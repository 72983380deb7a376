"""A changelog that several sessions share: who uses it, what is kept for them, and what becomes of one's own."""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from pathlib import Path

import pytest

from replication import sharing
from replication.agent import AgentRefused, agent_call
from replication.changelog.control import AgentUnreachable, Follower
from replication.changelog.store import ChangelogStore, SegmentDropped
from replication.session import SessionDir, SessionState
from replication.session_file import set_key, write_new
from replication.settings import SessionConfig, key_named
from tests.changelog.running import running


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


def session(state: Path, name: str, root: Path) -> SessionDir:
    place = SessionDir(state, name)
    write_new(place.named_config, SessionConfig(primary=str(root), secondary=f"/{name}"), "")
    place.save_state(SessionState(id=name))
    return place


class Lost:
    """Counts how often a session was told that its positions mean nothing."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sessions_of_one_primary_use_one_changelog_by_whatever_path(state: Path, root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    one, two, other = (session(state, name, root) for name in ("one", "two", "other"))
    volume = sharing.join(one, str(root), Lost())
    assert sharing.join(two, str(root.parent / "link"), Lost()) == volume
    assert sharing.join(other, str(root.parent), Lost()) != volume
    assert [place.name for place in sharing.consumers(volume)] == ["one", "two"]
    assert os.path.samefile(one.changelog, two.changelog)
    shutil.copytree(state, root.parent / "copy", symlinks=True)
    copied = SessionDir(root.parent / "copy", "one")
    assert os.path.realpath(copied.changelog).startswith(str(root.parent / "copy"))


def test_positions_are_of_one_changelog_only(state: Path, root: Path) -> None:
    place, lost = session(state, "one", root), Lost()
    volume = sharing.join(place, str(root), lost)
    assert lost.times == 1  # never used one
    sharing.join(place, str(root), lost)
    sharing.leave(place)
    assert sharing.consumers(volume) == []
    sharing.join(place, str(root), lost)
    assert lost.times == 1  # the same again: where it lacks something a gap is seen
    shutil.rmtree(volume / "changelog")
    sharing.join(place, str(root), lost)
    assert lost.times == 2  # it begins anew, at 1


def test_a_changelog_of_ones_own_becomes_the_volume_s_or_is_given_up(state: Path, root: Path) -> None:
    """As older versions left it. The first keeps its positions, the second has all compared."""
    one, two = session(state, "one", root), session(state, "two", root)
    lost_one, lost_two = Lost(), Lost()
    for place in (one, two):
        with running(root, place.changelog, detector="filesystem") as agent:
            (root / place.name).touch()
            agent.barrier()
    with ChangelogStore(one.changelog) as store:
        before = store.segments()
    volume = sharing.join(one, str(root), lost_one)
    sharing.join(two, str(root), lost_two)
    assert (lost_one.times, lost_two.times) == (0, 1)
    with ChangelogStore(two.changelog) as store:
        assert store.segments() == before
    assert (volume / "changelog").is_dir()


def test_nothing_is_deleted_that_one_of_them_has_not_applied(state: Path, root: Path) -> None:
    one, two = session(state, "one", root), session(state, "two", root)
    volume = sharing.join(one, str(root), Lost())
    sharing.join(two, str(root), Lost())

    def names() -> list[str]:
        return [place.name for place in sharing.consumers(volume)]

    with running(root, volume / "changelog", consumers=names) as agent:
        numbers = []
        for number in range(6):
            (root / str(number)).touch()
            numbers.append(agent.barrier())
        first = agent.states()[0][0]
        agent_call(volume / "changelog", "retain", upto=numbers[4], consumer="one")
        assert agent.states()[0][0] == first  # two has said nothing yet
        agent_call(volume / "changelog", "retain", upto=numbers[1], consumer="two")
        assert agent.states()[0][0] == numbers[1] + 1
        assert agent_call(volume / "changelog", "status")["applied"] == {"one": numbers[4], "two": numbers[1]}
        sharing.leave(two)
        agent_call(volume / "changelog", "retain", upto=numbers[4], consumer="one")
        assert agent.states()[0][0] == numbers[4] + 1


def test_the_limit_takes_from_who_is_behind_and_from_no_other(state: Path, root: Path) -> None:
    with running(root, state / "log", max_bytes=8000, close_after_ms=1) as agent:
        ahead = 0
        for number in range(60):
            (root / f"{number}-{'x' * 100}").touch()
            position = agent.barrier()
            if number == 57:
                ahead = position
        with ChangelogStore(state / "log") as store:
            first, *rest = store.segments()
            assert first.reason == "limit"  # a gap: who is behind scans
            assert first.number < ahead
            assert [info.number for info in rest] == list(range(first.number + 1, position + 1))
            for number in (first.number, 1):
                with pytest.raises(SegmentDropped):
                    store.read_records(number)
            store.read_records(ahead)


def test_settings_of_all_are_heeded_while_it_runs(state: Path, root: Path) -> None:
    """The shortest interval, the largest limit."""
    one, two = session(state, "one", root), session(state, "two", root)
    volume = sharing.join(one, str(root), Lost())
    sharing.join(two, str(root), Lost())
    set_key(one.named_config, key_named("segment_interval"), "5s")
    set_key(two.named_config, key_named("changelog_limit"), "3G")
    assert sharing.needs(volume) == (150, 3 << 30)
    (one.named_config.parent / "two.toml").write_text("damaged")
    assert sharing.needs(volume) == (5000, 1 << 30)
    with running(root, volume / "changelog", needs=lambda: sharing.needs(volume), tick_s=0.2) as agent:
        until(lambda: agent.agent._close_after_ms == 5000)


def test_a_follower_hears_of_each_position_and_of_the_end(state: Path, root: Path) -> None:
    log = state / "log"
    with pytest.raises(AgentUnreachable):
        Follower(state)
    with running(root, log) as agent:
        followers = [Follower(log), Follower(log)]
        assert followers[0].mode == "filesystem"
        (root / "f").touch()
        position = agent.barrier()
        for follower in followers:
            heard: list[int] = []
            while position not in heard:
                assert select.select([follower.fileno()], [], [], 10)[0]
                heard += [said["number"] for said in follower.read()]
        hung = followers[1]  # never reads again: it is dropped, and is no trouble of anybody
        for number in range(50):
            (root / f"g{number}").touch()
            agent.barrier()
    with pytest.raises(AgentUnreachable):
        while True:
            followers[0].read()
            select.select([followers[0].fileno()], [], [], 1)
    followers[0].close()
    hung.close()


def test_followers_that_go_while_they_are_told_something_are_no_trouble(state: Path, root: Path) -> None:
    """One socket has ended, and another one asks for what is told to the first, in one look of the agent."""
    log = state / "log"
    with running(root, log) as agent, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.connect(str(log / "agent.sock"))
        for number in range(40):
            followers = [Follower(log) for _ in range(5)]
            (root / f"f{number}").touch()
            time.sleep(0.005)  # it has read that, and sleeps for a moment
            asking.sendall(b'{"op": "barrier"}\n')
            for follower in followers:
                follower.close()
            assert b'"ok": true' in asking.recv(1000)
        assert agent.barrier()


def test_another_directory_in_the_place_of_the_root_is_not_taken_for_it(state: Path, root: Path) -> None:
    with pytest.raises(OSError, match="not the directory that it was"), running(root, state / "log") as agent:
        root.rename(root.parent / "elsewhere")
        root.mkdir()
        with pytest.raises(AgentRefused):
            Follower(state / "log")
        until(lambda: not (state / "log" / "agent.sock").exists())
        assert agent


def test_a_changelog_goes_with_the_last_who_uses_it(state: Path, root: Path) -> None:
    one, two = session(state, "one", root), session(state, "two", root)
    volume = sharing.join(one, str(root), Lost())
    sharing.join(two, str(root), Lost())
    shutil.rmtree(one.path)
    assert not sharing.remove_unused(volume)
    with running(root, volume / "changelog"):
        shutil.rmtree(two.path)
        assert not sharing.remove_unused(volume)  # somebody records there
    assert sharing.remove_unused(volume)
    assert not volume.exists()
