"""Which brick that was started again leaves something in doubt."""

from __future__ import annotations

import pytest

from replication.changelog import bricktwins
from replication.changelog.brickmembers import Member
from replication.changelog.bricktwins import Twins
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
    assert twins.restarted(a) and twins.all_were_there()
    clock.now += 20
    b.quiet = 5.0
    assert twins.all_were_there()
    b.records = False  # later: it saw all there was to see
    assert twins.all_were_there()


def test_one_without_a_twin(twins, bricks):
    a, b, c = bricks
    assert not twins.restarted(c)
    b.records = False
    assert not twins.restarted(a)


def test_twins_that_ended_together(twins, bricks, clock):
    a, b, _ = bricks
    assert twins.restarted(a)
    clock.now += 1
    b.quiet = 0.5
    assert not twins.restarted(b)
    assert twins.all_were_there()  # it was said
    clock.now += 1000
    assert twins.restarted(a)


def test_a_twin_that_had_ended_before(twins, bricks, clock):
    """It shows only when it was silent for a while."""
    a, b, _ = bricks
    assert twins.restarted(a)
    clock.now += 30
    b.quiet = 40.0
    assert twins.all_were_there()
    b.records = False
    assert not twins.all_were_there()
    assert twins.all_were_there()
