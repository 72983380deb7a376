"""The history: bounded, in order, and never believed where it makes no sense."""

from __future__ import annotations

import math
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.session import SessionDir
from scheduler import history
from scheduler.history import KEPT_S, SIZE, STEP_S, History, Sample, path_of, read

NOW = 1_800_000_000.0


@pytest.fixture
def place(tmp_path):
    made = SessionDir(tmp_path, "photos")
    made.path.mkdir(parents=True)
    return made


class Clock:
    """Time that a test sets."""

    def __init__(self, monkeypatch, at=NOW):
        self.at = at
        monkeypatch.setattr(history.time, "time", lambda: self.at)
        monkeypatch.setattr(history.time, "monotonic", lambda: self.at - NOW + 100)


def test_rates_are_means_of_what_was_counted(place, monkeypatch):
    clock = Clock(monkeypatch)
    writer = History(place)
    for step in range(4):
        clock.at = NOW + step * STEP_S
        writer.note({"bytes": step * 1000, "files": step * 20}, 1.5, 60, 7, step)
        clock.at += 1
        writer.note({"bytes": 10**9, "files": 10**9}, 9, 9, 9, 9)  # too soon
    found = read(place)
    assert [s.time for s in found] == [NOW + step * STEP_S for step in (1, 2, 3)]
    assert found[-1] == Sample(NOW + 30, 100.0, 2.0, 1.5, 60.0, 7, 3)


def test_counters_that_begin_again_are_no_negative_rate_and_unknown_is_none(place, monkeypatch):
    clock = Clock(monkeypatch)
    writer = History(place)
    for step, counters in enumerate([{"bytes": 5000}, {"bytes": 10}, {}, {"bytes": 20}]):
        clock.at = NOW + step * STEP_S
        writer.note(counters, None, None, 0, 0)
    found = read(place)
    assert [(s.bytes_s, s.lag_s, s.rpo_s) for s in found] == [(0.0, None, None), (0.5, None, None)]


def test_after_two_days_it_is_as_large_as_after_one_and_holds_the_last(place, monkeypatch):
    clock = Clock(monkeypatch)
    step = STEP_S * 60
    for restart in range(2):
        writer = History(place)
        for at in range(0, KEPT_S + step, step):
            clock.at = NOW + restart * KEPT_S + at
            writer.note({"bytes": at}, 0.0, None, 0, 0)
    assert path_of(place).stat().st_size <= SIZE
    found = read(place)
    times = [s.time for s in found]
    assert times == sorted(times)
    assert NOW + KEPT_S < times[0] <= NOW + KEPT_S + 2 * step
    assert times[-1] == clock.at
    assert [s.time for s in read(place, 3600)] == [t for t in times if t > clock.at - 3600]


@given(garbage=st.binary(max_size=400), at=st.integers(0, 300))
def test_garbage_is_never_shown(tmp_path_factory, garbage, at):
    place = SessionDir(tmp_path_factory.mktemp("history"), "photos")
    place.path.mkdir(parents=True)
    writer = History(place)
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        for step in range(5):
            clock.at = NOW + step * STEP_S
            writer.note({"bytes": step}, 1.0, None, 0, 0)
        with open(path_of(place), "r+b") as file:
            file.seek(at)
            file.write(garbage)
        for sample in read(place):
            assert NOW - KEPT_S < sample.time <= clock.at + STEP_S
            numbers = [sample.bytes_s, sample.files_s, sample.lag_s or 0, sample.rpo_s or 0]
            assert all(math.isfinite(number) and number >= 0 for number in numbers)


def test_nothing_there_or_a_disk_that_refuses_it_is_no_error(place, monkeypatch):
    assert read(place) == []
    clock = Clock(monkeypatch)
    path_of(place).mkdir()
    writer = History(place)
    for step in range(3):
        clock.at = NOW + step * STEP_S
        writer.note({"bytes": step}, 0.0, None, 0, 0)
    assert read(place) == []
    path_of(place).rmdir()
    path_of(place).write_bytes(os.urandom(random.randrange(10_000)))
    read(place)
