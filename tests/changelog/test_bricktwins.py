"""Which brick that was started again leaves something in doubt."""

from __future__ import annotations

import pytest

from replication.changelog import bricktwins
from replication.changelog.brickmembers import Member
from replication.changelog.bricktwins import Missing, Twins
from replication.gluster.glusterd import Brick


class Told(Member):
    """A brick of which is known what the test says."""

    def __init__(self, name, number):
        super().__init__(Brick("node", name, True, False), number)
        self.records, self.quiet = True, 10.0

    def quiet_s(self):
        return self.quiet


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 10_000.0

        def monotonic(self):
            return self.now

        def time_ns(self):
            return int(self.now * 1e9)

        def ago(self, seconds):
            return self.time_ns() - int(seconds * 1e9)

    made = Clock()
    monkeypatch.setattr(bricktwins, "time", made)
    return made


@pytest.fixture
def bricks():
    return [Told("a", 0), Told("b", 0), Told("c", 1)]


@pytest.fixture
def twins(bricks, clock):
    return Twins(lambda: bricks, lambda each: each.records)


def test_one_whose_twin_was_there(twins, bricks, clock):
    a, b, _ = bricks
    assert twins.restarted(a, clock.ago(1)) is None
    assert twins.missing() is None
    assert twins.in_doubt(str(a.brick)) and not twins.in_doubt(str(b.brick))
    clock.now += 20
    b.quiet = 5.0
    assert twins.missing() is None
    assert not twins.in_doubt(str(a.brick))
    b.records = False  # later: it saw all there was to see
    assert twins.missing() is None


def test_one_without_a_twin(twins, bricks):
    a, b, c = bricks
    assert twins.restarted(c, 7) == Missing(7)
    b.records = False
    assert twins.restarted(a, None) == Missing(None)


def test_twins_that_ended_together(twins, bricks, clock):
    a, b, c = bricks
    first = clock.ago(5)
    assert twins.restarted(a, first) is None
    clock.now += 1
    b.quiet = 0.5
    assert twins.restarted(b, clock.ago(2)) == Missing(first)  # what a did not record nobody did
    assert twins.missing() is None  # it was said
    assert twins.restarted(c, 11) == Missing(11)
    clock.now += 1000
    assert twins.restarted(a, clock.ago(3)) is None


def test_twins_that_ended_together_and_one_was_away_for_long(twins, bricks, clock):
    """The other one, which has been there for hours by then, was not when this one ended."""
    a, b, _ = bricks
    b.records = False
    ended = clock.ago(5)
    assert twins.restarted(a, ended) == Missing(ended)
    clock.now += 7200
    b.records = True
    assert twins.restarted(b, ended) == Missing(ended)
    clock.now += 7200
    assert twins.restarted(b, clock.ago(5)) is None


def test_of_one_that_was_killed_twice_the_first_counts(twins, bricks, clock):
    a, b, _ = bricks
    first = clock.ago(5)
    assert twins.restarted(a, first) is None
    assert twins.restarted(a, clock.ago(3)) is None
    b.records = False
    assert twins.missing() == Missing(first)


def test_where_one_of_them_cannot_say_since_when(twins, bricks, clock):
    a, b, _ = bricks
    assert twins.restarted(a, None) is None
    assert twins.restarted(b, clock.ago(9)) == Missing(None)


def test_a_twin_that_had_ended_before(twins, bricks, clock):
    """It shows only when it was silent for a while."""
    a, b, _ = bricks
    ended = clock.ago(3)
    assert twins.restarted(a, ended) is None
    clock.now += 30
    b.quiet = 40.0
    assert twins.missing() is None
    b.records = False
    assert twins.missing() == Missing(ended)
    assert twins.missing() is None
