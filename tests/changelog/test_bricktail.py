"""Following a brick's changelogs, written here as a brick writes them (as it was seen to do, GlusterFS 10.3)."""

from __future__ import annotations

import os
import random
import time
from types import SimpleNamespace
from uuid import UUID

import pytest

from replication.changelog import brickplace
from replication.changelog.brickplace import Clock, Place
from replication.changelog.bricktail import BrickTail

HEADER = b"GlusterFS Changelog | version: v1.2 | encoding : 2\n"


def can_have_trusted(path):
    try:
        os.setxattr(path, "trusted.seamark", b"x")
    except OSError:
        return False
    return True


class Brick:
    """What a brick does to its changelogs, step by step."""

    def __init__(self, base):
        self.path = base / "brick"
        self.changelogs = self.path / ".glusterfs" / "changelogs"
        (self.changelogs / "htime").mkdir(parents=True)
        self.clock = int(time.time())  # runs ahead: what it says of files is never long before they were made
        self.switch_on()

    def switch_on(self):
        self.clock += 1
        self.htime = self.changelogs / "htime" / f"HTIME.{self.clock}"
        self.htime.touch()
        os.setxattr(self.changelogs / "htime", "trusted.glusterfs.current_htime", self.htime.name.encode())
        self._begin()

    def _begin(self):
        (self.changelogs / "CHANGELOG").write_bytes(HEADER)

    def write(self, number):
        with open(self.changelogs / "CHANGELOG", "ab") as file:
            file.write(record(number))

    def _closed(self):
        folder = self.changelogs / time.strftime("%Y/%m/%d", time.gmtime(self.clock))
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"CHANGELOG.{self.clock}"

    def roll(self, seconds=15, *, begin=True, listed=True, removed=False):
        """``begin``: open the next one, too; ``listed``: in HTIME."""
        self.clock += seconds
        current, closed = self.changelogs / "CHANGELOG", self._closed()
        empty = current.stat().st_size == len(HEADER)
        if empty and listed:
            current.unlink()
        else:
            current.rename(closed)
        if listed:
            name = closed.with_name(closed.name.lower()) if empty else closed
            with open(self.htime, "ab") as file:
                file.write(bytes(name) + b"\0")
        if removed:
            closed.unlink()
        if begin:
            self._begin()

    def restart(self):
        """What it was writing gets a name, but no place in HTIME."""
        self.written_ns = (self.changelogs / "CHANGELOG").stat().st_mtime_ns
        self.roll(3, listed=False)

    def end_between(self):
        """It is killed when HTIME has the name already, and nothing is there to take the next records; and started again."""
        self.roll(begin=False)
        self.ended_ns = time.time_ns()
        time.sleep(1.1)
        self._begin()

    def switch_off(self):
        self.roll(begin=False)


def record(number):
    return b"D" + str(UUID(int=number)).encode() + b"\0"


class Follower:
    def __init__(self, brick, place=None):
        self.seen, self.lost, self.ended = [], [], []
        self.tail = BrickTail(str(brick.path), lambda *said: self.lost.append(said), self.ended.append)
        self.resumed = place is not None and self.tail.resume(place)
        if not self.resumed:
            self.tail.begin_at_end()

    @property
    def gaps(self):
        return [reason for reason, _ in self.lost]

    @property
    def restarts(self):
        return len(self.ended)

    def poll(self):
        assert self.tail.poll(
            lambda found: self.seen.append(int.from_bytes(found.gfid, "big")), lambda: None, lambda: False
        )
        return self.seen


@pytest.fixture
def brick(tmp_path):
    if not can_have_trusted(tmp_path):
        pytest.skip("trusted.* attributes need root")
    return Brick(tmp_path)


def test_records_are_taken_as_they_are_written(brick):
    follower = Follower(brick)
    brick.write(1)
    assert follower.poll() == [1]
    with open(brick.changelogs / "CHANGELOG", "ab") as file:
        file.write(record(2)[:20])
        file.flush()
        assert follower.poll() == [1]
        file.write(record(2)[20:])
    assert follower.poll() == [1, 2]
    brick.roll()
    brick.write(3)
    brick.roll()
    brick.roll()
    brick.write(4)
    assert follower.poll() == [1, 2, 3, 4]
    assert not follower.gaps and not follower.restarts


@pytest.mark.parametrize("seed", range(20))
def test_whenever_it_is_looked_at_each_record_is_seen_once(brick, seed):
    """And while nothing is amiss, nothing is said to be."""
    draw = random.Random(seed)
    print(f"seed {seed}")
    follower, written = Follower(brick), 0
    for _ in range(150):
        match draw.randrange(4):
            case 0:
                written += 1
                brick.write(written)
            case 1:
                brick.roll(draw.randrange(1, 30))
            case 2:
                brick.roll(draw.randrange(1, 30), begin=False)
                if draw.random() < 0.5:
                    follower.poll()  # the moment at which there is none
                brick._begin()
            case 3:
                follower.poll()
    assert follower.poll() == list(range(1, written + 1))
    assert not follower.gaps and not follower.restarts


def test_a_brick_that_was_started_again_is_noticed(brick):
    follower = Follower(brick)
    brick.write(1)
    follower.poll()
    brick.write(2)
    brick.restart()
    brick.write(3)
    assert follower.poll() == [1, 2, 3]
    assert follower.restarts == 1
    brick.restart()  # with nothing in it
    follower.poll()
    brick.restart()
    assert follower.poll() == [1, 2, 3]
    assert follower.restarts >= 2
    assert not follower.gaps


def test_a_changelog_that_was_off_is_a_gap(brick):
    follower = Follower(brick)
    brick.write(1)
    brick.switch_off()
    follower.poll()
    assert not follower.tail.is_recording()
    brick.switch_on()
    brick.write(2)
    follower.poll()
    assert follower.poll() == [1, 2]
    assert follower.gaps == ["changelog off"]


def test_two_files_of_one_second_are_a_gap(brick):
    """The later one takes the name of the earlier, which nobody has read."""
    follower = Follower(brick)
    follower.poll()
    brick.write(1)
    brick.roll()
    brick.write(2)
    brick.roll(5)
    brick.write(3)
    brick.roll(0)
    brick.write(4)
    assert follower.poll() == [1, 3, 4]
    assert follower.gaps


def test_a_file_of_which_only_the_name_is_left_is_a_gap(brick):
    follower = Follower(brick)
    follower.poll()
    brick.write(1)
    brick.roll()
    brick.write(2)
    brick.roll(removed=True)
    brick.write(3)
    assert follower.poll() == [1, 3]
    assert follower.gaps


def test_a_damaged_file_is_a_gap_where_it_shows_and_at_its_end(brick):
    follower = Follower(brick)
    brick.write(1)
    with open(brick.changelogs / "CHANGELOG", "ab") as file:
        file.write(b"rubbish\0")
    follower.poll()
    assert follower.gaps == ["damaged"]
    brick.write(2)
    follower.poll()
    brick.roll()
    brick.write(3)
    assert follower.poll() == [1, 3]
    assert follower.gaps == ["damaged", "damaged"]


@pytest.mark.parametrize("seed", range(20))
def test_who_goes_on_misses_nothing(brick, seed):
    draw = random.Random(seed)
    print(f"seed {seed}")
    follower, written = Follower(brick), 0
    seen = set()
    for _ in range(100):
        match draw.randrange(4):
            case 0:
                written += 1
                brick.write(written)
            case 1:
                brick.roll(draw.randrange(1, 30))
            case 2:
                follower.poll()
            case 3:
                seen |= set(follower.seen)
                place = follower.tail.place()
                follower.tail.close()
                for _ in range(draw.randrange(4)):
                    written += 1
                    brick.write(written)
                    if draw.random() < 0.5:
                        brick.roll(draw.randrange(1, 30))
                follower = Follower(brick, place)
                assert follower.resumed
    seen |= set(follower.poll())
    assert seen == set(range(1, written + 1))
    assert not follower.gaps and not follower.restarts


def test_who_goes_on_after_the_changelog_was_off_does_not(brick):
    follower = Follower(brick)
    brick.write(1)
    follower.poll()
    place = follower.tail.place()
    brick.switch_off()
    brick.switch_on()
    assert not Follower(brick, place).resumed


@pytest.fixture
def never_set(monkeypatch):
    """The bricks' clock, which runs ahead of ours in these tests, is believed."""
    monkeypatch.setattr(Clock, "tells", lambda self, since_ns: since_ns > 0)


def test_what_is_lost_was_done_after_what_was_read_to_its_end(brick, never_set):
    follower = Follower(brick)
    brick.write(1)
    with open(brick.changelogs / "CHANGELOG", "ab") as file:
        file.write(b"rubbish\0")
    follower.poll()
    assert follower.lost == [("damaged", None)]  # nothing was read to its end yet
    brick.roll()
    follower.poll()
    first = brick.clock * 10**9
    for damage in (lambda: brick.roll(removed=True), lambda: (brick.switch_off(), brick.switch_on())):
        follower.lost.clear()
        brick.write(2)
        damage()
        follower.poll()
        follower.poll()
        assert follower.lost and {since for _, since in follower.lost} == {first}
        brick.write(3)
        brick.roll()
        follower.poll()
        first = brick.clock * 10**9


def test_who_goes_on_after_the_changelog_was_off_knows_since_when(brick, never_set):
    follower = Follower(brick)
    brick.write(1)
    brick.roll()
    until = brick.clock * 10**9
    brick.write(2)
    follower.poll()
    place = follower.tail.place()
    brick.switch_off()
    brick.switch_on()
    brick.write(3)
    for _ in range(2):
        again = Follower(brick, Place.of_json(place.as_json()))
        assert again.resumed and again.poll() == [3]
        assert again.lost == [("changelog off", until)]
    assert not Follower(brick, place._replace(boot="another")).resumed


def test_where_the_clock_was_set_nobody_knows_since_when(monkeypatch):
    offset_ns = 10**18
    monkeypatch.setattr(brickplace, "clock_offset_ns", lambda: offset_ns)
    monkeypatch.setattr(brickplace, "time", SimpleNamespace(time_ns=lambda: now_ns))
    now_ns = 100 * 10**9
    clock = Clock()
    assert not clock.tells(now_ns - 1)  # nobody has watched it then
    before_ns, now_ns = now_ns, now_ns + 3600 * 10**9
    assert clock.tells(before_ns) and Clock(*clock.as_set).tells(before_ns)
    assert not clock.tells(now_ns + 1)  # which it has not reached yet: it was set back before
    for step_ns in (-60 * 10**9, 60 * 10**9):
        before_ns = now_ns
        left = clock.as_set
        offset_ns, now_ns = offset_ns + step_ns, now_ns + step_ns
        assert not clock.tells(before_ns) and not Clock(*left).tells(before_ns)
        before_ns, now_ns = now_ns, now_ns + 3600 * 10**9
        assert clock.tells(before_ns)


def left_before_a_restart(brick):
    """Where somebody was who followed it, and ended before it was killed and started again."""
    follower = Follower(brick)
    brick.write(1)
    follower.poll()
    place = follower.tail.place()
    brick.write(2)
    brick.restart()
    return place


def test_who_goes_on_hears_of_a_restart_meanwhile(brick):
    place = left_before_a_restart(brick)
    brick.write(3)
    again = Follower(brick, place)
    assert again.poll() == [1, 2, 3]
    assert again.restarts == 1
    assert again.ended == [brick.written_ns]


def test_after_another_boot_of_its_node_nobody_knows_since_when(brick):
    """What was not on its disk is undone then, however old it is; but not what happens from now on."""
    place = left_before_a_restart(brick)
    again = Follower(brick, place._replace(boot="another"))
    assert again.resumed and again.tail.place().boot == ""
    again.poll()
    assert again.ended == [None]
    brick.roll()
    again.poll()
    brick.write(3)
    brick.restart()
    again.poll()
    assert again.ended == [None, brick.written_ns]


@pytest.mark.parametrize("written", [False, True])
def test_a_brick_that_ended_before_it_had_begun_the_next_file(brick, written):
    """Nothing of it lacks a place in HTIME then; what it did last was recorded nowhere."""
    follower = Follower(brick)
    follower.poll()
    place = follower.tail.place()
    if written:
        brick.write(1)
    brick.end_between()
    brick.write(2)
    expected = [1, 2] if written else [2]
    assert follower.poll() == expected
    again = Follower(brick, place)
    assert again.resumed
    assert again.poll() == expected
    for each in (follower, again):
        (since,) = each.ended
        assert brick.ended_ns - 5e9 < since < brick.ended_ns
        assert not each.gaps
    place = again.tail.place()
    brick.write(3)
    brick.roll()
    for each in (follower, again, Follower(brick, place)):
        before = each.restarts
        each.poll()
        brick.roll()
        each.poll()
        assert (each.restarts, each.gaps) == (before, [])


def test_who_hears_of_it_when_the_next_file_is_closed_already(brick):
    """As whoever followed it was away meanwhile."""
    follower = Follower(brick)
    follower.poll()
    place = follower.tail.place()
    brick.clock -= 100  # it ran behind: when files were closed is known by themselves
    brick.write(1)
    brick.roll()
    brick.write(2)
    brick.end_between()
    brick.write(3)
    brick.roll()
    brick.write(4)
    again = Follower(brick, place)
    assert again.poll() == [1, 2, 3, 4]
    assert again.restarts == 1
    assert not again.gaps
    assert brick.ended_ns - 5e9 < again.ended[0] < brick.ended_ns
    after_boot = Follower(brick, place._replace(boot="another"))
    assert after_boot.poll() == [1, 2, 3, 4]
    assert after_boot.ended == [None]


def test_who_hears_of_it_when_what_was_closed_before_was_empty(brick):
    follower = Follower(brick)
    follower.poll()
    place = follower.tail.place()
    brick.clock -= 100
    brick.roll()
    brick.write(1)
    brick.roll()
    again = Follower(brick, place)
    assert again.poll() == [1]
    assert len(again.ended) == 1
    assert abs(again.ended[0] // 10**9 - (brick.clock - 15)) <= 1
