"""Bandwidth: whatever many processes ask for, together they are granted no more than the limit."""

from __future__ import annotations

import threading
import time
import types

import pytest

from replication.quantities import NO_LIMIT, Timetable
from replication.settings import ScheduleSettings
from tasks.bandwidth import Bandwidth, publish_fleet_limit
from tasks.ledger import connect

MIB = 1 << 20


@pytest.fixture
def context(redis_server):
    clients = []

    def make(session="s1", bandwidth="off"):
        clients.append(connect(redis_server.url))
        settings = types.SimpleNamespace(bandwidth=Timetable.parse(bandwidth), schedule=ScheduleSettings())
        ledger = types.SimpleNamespace(redis=clients[-1], prefix=f"seamark:{{{session}}}:")
        return types.SimpleNamespace(session=settings, ledger=ledger)

    yield make
    for client in clients:
        client.close()


def granted(limits, amount, times):
    """(when it may be sent, bytes) of reservations that several threads make of several limits at once."""
    found = []

    def ask(bandwidth):
        for _ in range(times):
            wait = bandwidth.reserve(amount)
            found.append((time.monotonic() + wait, amount))

    threads = [threading.Thread(target=ask, args=(each,)) for each in limits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found)


def assert_within(found, rate, began):
    """Never more than the rate allows since the beginning, but for half a second's worth at once, and one piece."""
    total = 0
    for when, amount in found:
        total += amount
        assert total <= rate * (when - began + 0.5) + amount


def test_processes_of_a_session_share_its_limit(context):
    began = time.monotonic()
    limits = [Bandwidth(context(bandwidth="10M")) for _ in range(4)]
    found = granted(limits, 64 << 10, 100)
    assert_within(found, 10 * MIB, began)
    assert found[-1][0] - began < 400 * (64 << 10) / (10 * MIB) + 5  # and are not held up for longer


def test_sessions_share_the_limit_of_the_fleet(context):
    began = time.monotonic()
    first, second = context("s1", "50M"), context("s2")
    publish_fleet_limit(first.ledger.redis, "8M")
    found = granted([Bandwidth(first), Bandwidth(second), Bandwidth(second)], 64 << 10, 60)
    assert_within(found, 8 * MIB, began)
    assert Bandwidth(second).limited()
    publish_fleet_limit(first.ledger.redis, "")
    assert not Bandwidth(second).limited()
    assert Bandwidth(second).reserve(100 * MIB) == 0


def test_a_limit_is_changed_while_it_holds(context):
    ctx = context(bandwidth="1K")
    bandwidth = Bandwidth(ctx)
    bandwidth.reserve(1024)
    assert bandwidth.reserve(1024) > 0
    ctx.session.bandwidth = NO_LIMIT
    assert bandwidth.reserve(1 << 40) == 0
    assert not bandwidth.limited()


def test_whoever_waits_gives_signs_of_life(context):
    bandwidth = Bandwidth(context(bandwidth="100K"))
    signs = []
    bandwidth.spend(150 << 10, lambda: signs.append(1))
    assert signs


def test_nobody_waits_for_a_redis_that_is_away(context, redis_server):
    ctx = context(bandwidth="1K")
    redis_server.stop()
    try:
        assert Bandwidth(ctx).reserve(MIB) == 0
    finally:
        redis_server.start()
        redis_server.wait_ready()
