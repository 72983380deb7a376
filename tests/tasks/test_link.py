"""One process of a host tries a secondary that is away, the others wait; on a real Redis."""

from __future__ import annotations

import time

import pytest

from replication.errors import SeamarkError
from tasks import link as links
from tasks.ledger import Ledger
from tasks.link import Link, LinkRests

AWAY = SeamarkError("host refuses the connection")


@pytest.fixture
def ledger(redis_server):
    return Ledger(redis_server.client(), "one")


@pytest.fixture
def quick(monkeypatch):
    """No jitter, and little to wait for."""
    monkeypatch.setattr(links, "_FIRST_S", 0.2)
    monkeypatch.setattr(links.random, "uniform", lambda _low, high: high)


def may_try(link):
    try:
        link.take_turn()
    except LinkRests:
        return False
    return True


def test_while_it_works_everybody_connects_and_nothing_is_kept(ledger):
    for _ in range(3):
        one = Link(ledger, "here")
        one.take_turn()
        one.works()
    assert ledger.redis.keys("*") == []


def test_of_many_one_tries_and_ever_more_seldom(ledger, quick):
    processes = [Link(ledger, "here") for _ in range(5)]
    assert all(map(may_try, processes)), "nothing is known yet"
    for process in processes:
        process.failed(AWAY)
    waits = []
    for _ in range(4):
        began = time.monotonic()
        assert not any(map(may_try, processes))
        assert AWAY.message in processes[0].rests()
        while processes[0].rests():
            time.sleep(0.01)
        waits.append(time.monotonic() - began)
        turns = [process for process in processes if may_try(process)]
        assert len(turns) == 1, "one process tries, and the others wait for what it finds"
        turns[0].failed(AWAY)
    # Those who lost it together count as one try.
    assert all(0.5 * 0.2 * 2**n < wait < 0.2 * 2**n + 5 for n, wait in enumerate(waits)), waits


def test_whoever_gets_through_lets_all_try(ledger, quick):
    one, other = Link(ledger, "here"), Link(ledger, "here")
    one.take_turn()
    one.failed(AWAY)
    while one.rests():
        time.sleep(0.01)
    assert may_try(one)
    assert not may_try(other)
    one.works()
    assert may_try(other)
    assert ledger.redis.keys("*") == []


def test_a_process_that_was_killed_while_it_tried_does_not_hold_the_others_for_ever(
    ledger, quick, monkeypatch
):
    monkeypatch.setattr(links, "_PROBE_S", 1)
    killed, other = Link(ledger, "here"), Link(ledger, "here")
    killed.take_turn()
    killed.failed(AWAY)
    while killed.rests():
        time.sleep(0.01)
    assert may_try(killed)
    assert not may_try(other)
    until = time.monotonic() + 10
    while not may_try(other):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_another_host_has_its_own_way_there(ledger, quick):
    here, there = Link(ledger, "here"), Link(ledger, "there")
    here.take_turn()
    here.failed(AWAY)
    assert not may_try(here)
    assert may_try(there)
