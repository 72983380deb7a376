"""When what a rebalance moved has to be looked at again."""

from __future__ import annotations

import time

import pytest

from replication.changelog.brickrebalance import RebalanceWatch

NONE = "00000000-0000-0000-0000-000000000000"
FIRST, SECOND = NONE.replace("0", "1"), NONE.replace("0", "2")


@pytest.fixture
def watch(tmp_path):
    """``watch.is_now(id, status)`` writes what glusterd would."""

    def made():
        watch = RebalanceWatch(str(tmp_path), tmp_path / "kept")
        watch.is_now = is_now
        return watch

    def is_now(number, status):
        (tmp_path / "node_state.info").write_text(
            f"rebalance_status=1\nstatus={status}\nrebalance_op=19\nrebalance-id={number}\n"
        )

    is_now(NONE, 0)
    found = made()
    found.again = made
    return found


def test_the_end_of_one_is_told_until_it_is_noted(watch):
    assert watch.ended_since() is None
    before = time.time_ns()
    watch.is_now(FIRST, 1)
    assert watch.ended_since() is None
    watch.is_now(FIRST, 3)
    assert watch.ended_since() < before
    assert watch.ended_since() < before
    watch.note()
    assert watch.ended_since() is None
    watch.is_now(FIRST, 3)  # glusterd writes it again
    assert watch.ended_since() is None


def test_one_that_began_and_ended_between_two_looks(watch):
    before = time.time_ns()
    assert watch.ended_since() is None
    watch.is_now(FIRST, 3)
    assert before <= watch.ended_since() < time.time_ns()


def test_one_that_another_followed(watch):
    watch.is_now(FIRST, 1)
    watch.ended_since()
    watch.is_now(SECOND, 1)
    assert (since := watch.ended_since()) is not None
    watch.note()
    assert watch.ended_since() is None
    watch.is_now(SECOND, 2)  # stopped
    assert watch.ended_since() <= since


def test_one_that_ended_while_nobody_looked(watch):
    watch.ended_since()
    watch.is_now(FIRST, 1)
    before = time.time_ns()
    watch.ended_since()
    watch.close()
    watch.is_now(FIRST, 4)
    after = watch.again()
    assert after.ended_since() < before
    after.note()
    after.close()
    watch.is_now(SECOND, 3)
    assert watch.again().ended_since() >= before


def test_one_that_went_with_its_brick_before_anybody_saw_it(watch):
    """Where a brick is removed as soon as it is empty, nothing is left that says that another one ended."""
    watch.is_now(FIRST, 3)
    watch.ended_since()
    watch.note()
    before = time.time_ns()
    assert watch.ended_since() is None
    watch.is_now(SECOND, 3)
    watch.is_now(NONE, 0)
    assert before <= watch.ended_since() < time.time_ns()
    watch.note()
    assert watch.ended_since() is None


def test_one_that_ended_after_another_was_told_and_before_that_was_noted(watch):
    watch.is_now(FIRST, 1)
    watch.ended_since()
    watch.is_now(FIRST, 3)
    assert watch.ended_since() is not None
    told = time.time_ns()
    watch.is_now(SECOND, 3)
    watch.note()
    assert watch.ended_since() < told
    watch.note()
    assert watch.ended_since() is None
