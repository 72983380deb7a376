"""The lease, on a real Redis: one node has it at a time, and nobody waits longer than it takes to be sure."""

from __future__ import annotations

import json
import threading
import time

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replication.errors import TemporaryError
from replication.session import Session, SessionDir, SessionState
from scheduler.lease import Lease
from scheduler.reports import session_report
from scheduler.standby import Standby, SteppedBack
from tasks.context import Context
from tasks.ledger import connect

LONG_S = 3600.0


def session(instance, **changes):
    fields = {
        "name": "s",
        "id": "pair",
        "instance": instance,
        "root": "r",
        "primary": "/p",
        "secondary": "/s",
    }
    return Session(**{**fields, **changes})


@pytest.fixture
def client(redis_server):
    with redis_server.client() as made:
        yield made


@pytest.fixture
def node(client, tmp_path):
    """Makes the lease of a node."""

    def make(name, ttl_s=LONG_S, instance=None, place=None, **changes):
        place = place or SessionDir(tmp_path / name, "s")
        place.path.mkdir(parents=True, exist_ok=True)
        return Lease(client, place, session(instance or name, **changes), name, ttl_s)

    return make


def the_key(client):
    (key,) = client.keys("seamark:{pair}:lease:*")
    return key


def test_one_has_it_and_the_others_see_who(node):
    a, b = node("a"), node("b")
    assert not a.look().ours
    assert a.look().holder is None
    before = time.time()
    assert a.take().ours
    seen = b.take()
    assert not seen.ours
    assert seen.holder.node == "a"
    assert before <= seen.holder.since <= time.time()
    assert 0 < seen.left_s <= LONG_S
    since = seen.holder.since
    assert a.take().ours  # renewed
    assert b.look().holder.since == since
    b.free()  # not its own
    assert a.look().ours
    a.free()
    assert b.look().freed
    assert b.take().ours
    assert not a.take().ours


def test_it_ends_by_itself(node, client):
    a, b = node("a", ttl_s=0.2), node("b")
    assert a.take().ours
    assert not b.take().ours
    until = time.monotonic() + 30
    while not b.take().ours:
        assert time.monotonic() < until
    assert not a.take().ours  # it slept too long
    assert client.pttl(the_key(client)) > 0  # never for good


def test_a_run_of_the_same_state_directory_goes_on_at_once_and_a_copy_of_it_does_not(node, tmp_path):
    place = SessionDir(tmp_path / "state", "s")
    assert node("a", place=place).take().ours
    assert node("a", place=place).take().ours
    copy = node("a", instance="a")
    seen = copy.take()
    assert not seen.ours
    assert seen.holder.instance == copy.instance


def test_another_volume_under_the_same_paths_has_a_lease_of_its_own(node):
    assert node("a").take().ours
    assert node("b", root="another").take().ours


def test_of_many_that_begin_at_once_one_gets_it(node):
    leases = [node(f"n{number}") for number in range(8)]
    for _ in range(20):
        start, got = threading.Barrier(len(leases)), []

        def begin(lease, start=start, got=got):
            start.wait()
            if lease.take().ours:
                got.append(lease)

        threads = [threading.Thread(target=begin, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].free()


STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "look", "free", "expire", "empty"]), st.integers(0, 2)), max_size=40
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_one_has_it_and_everybody_agrees_who(node, client, steps):
    client.flushall()
    leases = [node(f"n{number}") for number in range(3)]
    holder = None  # what must be the case
    for what, number in steps:
        lease = leases[number]
        if what in ("expire", "empty"):
            client.flushall()
            holder = None
            continue
        if what == "take":
            seen = lease.take()
            holder = number if holder is None else holder
            assert seen.ours is (holder == number)
        elif what == "look":
            seen = lease.look()
        else:
            lease.free()
            holder = None if holder == number else holder
        seen = [each.look() for each in leases]
        assert [each.ours for each in seen] == [holder == each for each in range(3)]
        assert {each.holder.node if each.holder else None for each in seen} == {
            None if holder is None else f"n{holder}"
        }


# ---- what a node makes of it


@pytest.fixture
def standby(client, redis_server, tmp_path):
    """Makes the part of one node, with the lease's usual time unless told otherwise."""
    made = []

    def make(name, ttl_s=LONG_S, instance=None, url=redis_server.url):
        place = SessionDir(tmp_path / name, "s")
        primary = tmp_path / "primary"
        primary.mkdir(exist_ok=True)
        instance = instance or name
        own = session(instance, primary=str(primary), secondary=str(tmp_path / "secondary"))
        place.path.mkdir(parents=True)
        place.save_run(own)
        place.save_state(SessionState(id="pair", instance=instance))
        ctx = Context(place, own)
        made.append(ctx)
        lease = Lease(connect(url, 0.5), place, own, name, ttl_s)
        return Standby(ctx, lease, lambda _: None), place

    yield make
    for ctx in made:
        ctx.progress.close()


def test_redis_emptied_is_no_reason_to_take_over(standby, client):
    (a, _), (b, _) = standby("a"), standby("b")
    assert a.take()
    assert not b.take()
    client.flushall()
    assert not b.take()  # whoever was at work takes it again first
    a.keep()
    assert not b.take()
    client.flushall()
    assert not b.take()
    a.end()  # not its own any more: Redis knows of nobody
    assert not b.take()


def test_who_ends_in_order_is_followed_at_once(standby):
    (a, _), (b, _) = standby("a"), standby("b")
    assert a.take()
    assert not b.take()
    a.end()
    assert b.take()
    with pytest.raises(SteppedBack, match="node b has taken over"):
        a.keep()


def test_who_vanishes_is_followed_when_its_time_is_over(standby):
    (a, _), (b, _) = standby("a", ttl_s=0.3), standby("b", ttl_s=0.3)
    assert a.take()
    assert not b.take()
    assert b.wait(lambda: False)


def test_without_redis_nobody_begins_and_whoever_is_at_work_goes_on(standby, redis_server):
    (a, _), (b, _) = standby("a"), standby("b")
    assert a.take()
    assert not b.take()
    gone, _ = standby("c", url="redis+socket:///nonexistent/redis.sock")
    assert not gone.take()
    a._lease._run = b._lease._run = refuse
    a.keep()
    assert not b.take()
    stops = iter([0, 0, 0, 1])
    assert not b.wait(lambda: next(stops))


def refuse(**_):
    raise redis.ConnectionError("gone")


def test_what_a_waiting_node_says(standby, tmp_path):
    (a, _), (b, place) = standby("a"), standby("b")
    assert a.take()
    turns = []

    def stopping():
        turns.append(session_report(str(tmp_path / "b"), "s") if turns else None)
        return len(turns) > 2

    assert not b.wait(stopping)
    found = turns[1]
    assert (found.status, found.healthy, found.reason, found.active_node) == (
        "Passive",
        True,
        "node a is active",
        "a",
    )
    assert found.active_since == pytest.approx(time.time(), abs=60)
    assert json.loads((place.path / "told.json").read_text())["state"] == "stopped"


def test_a_copied_state_gets_an_instance_of_its_own(standby):
    (a, _), (b, place) = standby("a"), standby("b", instance="a")
    assert a.take()
    assert not b.take()
    with pytest.raises(TemporaryError, match="copied from node a"):
        b.check_own()
    assert place.state().instance != "a"
