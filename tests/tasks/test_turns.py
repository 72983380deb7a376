"""Whose turn it is: no session, and no queue of one, waits for more than one message of each other one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.turns import Turns

QUEUES = ["alive.data.n", "stream.a.1", "bulk.a.1", "stream.b.2", "rsync.b.2", "data.n.c.3"]


def take(turns, waiting):
    """The queue from which the next message comes, as BRPOP decides."""
    for queue in turns.consume(len(waiting)):
        if waiting[queue]:
            waiting[queue] -= 1
            turns.rotate(queue)
            return queue
    return None


def test_a_busy_session_does_not_starve_another():
    turns = Turns(["stream.busy.1", "rsync.busy.1", "bulk.busy.1", "stream.quiet.2"])
    waiting = {"stream.busy.1": 1000, "rsync.busy.1": 1000, "bulk.busy.1": 1000, "stream.quiet.2": 10}
    taken = [take(turns, waiting) for _ in range(20)]
    assert taken.count("stream.quiet.2") == 10


def test_a_huge_directory_does_not_starve_the_rest_of_its_session():
    turns = Turns(["bulk.a.1", "stream.a.1"])
    waiting = {"stream.a.1": 5, "bulk.a.1": 1000}
    taken = [take(turns, waiting) for _ in range(10)]
    assert taken.count("stream.a.1") == 5


def test_who_asks_whether_it_is_alive_comes_first():
    turns = Turns(QUEUES)
    waiting = dict.fromkeys(QUEUES, 3)
    assert [take(turns, waiting) for _ in range(3)] == ["alive.data.n"] * 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=len(QUEUES), max_size=len(QUEUES)), st.data())
def test_everything_is_taken_in_turn_and_nothing_twice(amounts, data):
    waiting = dict(zip(QUEUES, amounts, strict=True))
    turns = Turns(QUEUES)
    fleets = {queue.partition(".")[2] for queue in QUEUES[1:]}
    since = dict.fromkeys(fleets, 0)
    while sum(waiting.values()):
        before = dict(waiting)
        queue = take(turns, waiting)
        assert queue is not None
        if queue.startswith("alive."):
            continue
        for fleet in fleets:
            has = any(
                n for q, n in before.items() if q.partition(".")[2] == fleet and not q.startswith("alive.")
            )
            since[fleet] = 0 if fleet == queue.partition(".")[2] or not has else since[fleet] + 1
            assert since[fleet] < len(fleets)
        if data.draw(st.booleans()):
            turns.update(QUEUES)  # what kombu does whenever a queue comes or goes
    assert sorted(turns.consume(99)) == sorted(QUEUES)


def test_queues_come_and_go():
    turns = Turns(["stream.a.1", "stream.b.2"])
    turns.rotate("stream.a.1")
    turns.update(["stream.a.1", "stream.b.2", "stream.c.3"])
    assert turns.consume(9) == ["stream.b.2", "stream.a.1", "stream.c.3"]
    turns.update(["stream.c.3"])
    assert turns.consume(9) == ["stream.c.3"]
    turns.rotate("stream.gone.9")
