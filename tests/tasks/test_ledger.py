"""The ledger's promise: the front passes a batch only when every unit of it, also those found later, is done."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from replication.failures import Failure
from tasks.ledger import Ledger, OutOfOrder, StaleFence, connect
from tests.servers import RedisServer, wait_until

EPOCH = 7


@pytest.fixture
def ledger(redis_server):
    made = Ledger(connect(redis_server.url), "s1")
    made.begin_epoch(EPOCH)
    return made


def test_front_waits_for_units_found_on_the_way(ledger):
    ledger.open(EPOCH, 1, {"kind": "changelog"}, {"E:1:0": "{}"})
    standing = ledger.settle(EPOCH, 1, "E:1:0", found={"D:stream:1": b"\x00\xff"})
    assert standing.front == 0
    assert ledger.payload(1, "D:stream:1") == b"\x00\xff"
    assert ledger.settle(EPOCH, 1, "D:stream:1").front == 1


def test_batches_complete_in_order(ledger):
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}"})
    ledger.open(EPOCH, 2, {}, {"E:2:0": "{}"})
    assert ledger.settle(EPOCH, 2, "E:2:0").front == 0
    assert ledger.settle(EPOCH, 1, "E:1:0").front == 2


def test_a_twin_settles_nothing_and_adds_nothing(ledger):
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}", "E:2:0": "{}"})
    assert ledger.settle(EPOCH, 1, "E:1:0", found={"D:stream:a": "x"}).done
    again = ledger.settle(EPOCH, 1, "E:1:0", found={"D:stream:b": "x"})
    assert not again.done
    assert ledger.payload(1, "D:stream:b") is None


def test_batches_are_opened_one_after_another(ledger):
    with pytest.raises(OutOfOrder):
        ledger.open(EPOCH, 2, {}, {})
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}"})
    with pytest.raises(OutOfOrder):
        ledger.open(EPOCH, 1, {}, {})


def test_an_older_epoch_is_refused_everywhere(ledger):
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}"})
    ledger.begin_epoch(EPOCH + 1)
    for call in (
        lambda: ledger.open(EPOCH, 1, {}, {}),
        lambda: ledger.settle(EPOCH, 1, "E:1:0"),
        lambda: ledger.standing(EPOCH),
        lambda: ledger.forget(EPOCH, 1),
    ):
        with pytest.raises(StaleFence):
            call()
    assert ledger.payload(1, "E:1:0") is None


def test_a_flushed_ledger_serves_nobody(ledger):
    ledger.redis.flushall()
    assert ledger.fence() is None
    with pytest.raises(StaleFence):
        ledger.standing(EPOCH)


def test_a_restarted_secondary_is_noticed(ledger):
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}", "E:2:0": "{}"})
    ledger.settle(EPOCH, 1, "E:1:0", boot="a")
    assert not ledger.batch(1).rebooted
    ledger.settle(EPOCH, 1, "E:2:0", boot="b")
    assert ledger.batch(1).rebooted


def test_reports_are_kept_until_the_batch_is_forgotten(ledger):
    ledger.open(EPOCH, 1, {"kind": "retry"}, {"R:stream:1": b"x"})
    bad = Failure(step="data", gfid="ab", path="p", code="io", error="why")
    ledger.settle(EPOCH, 1, "R:stream:1", failures=[bad], resolved={"data:cd": 7})
    failures, resolved = ledger.reports(1)
    assert [row["error"] for row in failures] == ["why"]
    assert resolved == [("data:cd", 7)]
    ledger.forget(EPOCH, 1)
    assert ledger.batch(1) is None
    assert ledger.reports(1) == ([], [])
    assert ledger.forgotten() == 1


def test_nothing_beyond_the_front_is_forgotten(ledger):
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}"})
    ledger.forget(EPOCH, 1)
    assert ledger.payload(1, "E:1:0") == b"{}"


class LedgerMachine(RuleBasedStateMachine):
    """Open, settle (also twice, also in any order) and forget; a model of sets says where the front must be."""

    server = None
    units = Bundle("units")

    @initialize()
    def start(self):
        self.ledger = Ledger(connect(self.server.url), "m")
        self.ledger.begin_epoch(EPOCH)
        self.open_units: dict[int, set[str]] = {}
        self.opened = 0
        self.count = 0

    def _new(self, batch, how_many):
        made = [f"D:stream:{self.count + n}" for n in range(how_many)]
        self.count += how_many
        self.open_units.setdefault(batch, set()).update(made)
        return made

    @rule(target=units, how_many=st.integers(0, 3))
    def open(self, how_many):
        self.opened += 1
        made = self._new(self.opened, how_many)
        self.ledger.open(EPOCH, self.opened, {"n": self.opened}, dict.fromkeys(made, "x"))
        return [(self.opened, name) for name in made]

    @rule(target=units, group=consumes(units), which=st.integers(0, 9), found=st.integers(0, 2))
    def settle(self, group, which, found):
        if not group:
            return []
        batch, name = group[which % len(group)]
        done = name in self.open_units.get(batch, set())
        made = self._new(batch, found) if done else [f"D:stream:never{self.count}"]
        assert self.ledger.settle(EPOCH, batch, name, found=dict.fromkeys(made, "y")).done == done
        self.open_units.get(batch, set()).discard(name)
        return [*group, *((batch, made_name) for made_name in made if done)]

    @rule()
    def forget(self):
        self.ledger.forget(EPOCH, self.opened)

    @invariant()
    def front_is_where_the_model_says(self):
        if not hasattr(self, "ledger"):
            return
        front = 0
        while front < self.opened and not self.open_units.get(front + 1):
            front += 1
        assert self.ledger.standing(EPOCH).front == front


def test_ledger_against_a_model(redis_server):
    LedgerMachine.server = redis_server
    machine = LedgerMachine.TestCase
    machine.settings = settings(
        max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck)
    )
    machine().runTest()


def test_manifest_comes_back_as_it_was(ledger):
    manifest = {"kind": "hybrid", "crawl": "ab", "start_ns": 1, "end_ns": 2**62}
    ledger.open(EPOCH, 1, manifest, {"C:0": json.dumps([["00", "b\udcff"]])})
    assert ledger.batch(1).manifest == manifest
    assert json.loads(ledger.payload(1, "C:0")) == [["00", "b\udcff"]]


# ---- a Redis that has forgotten its last writes


def test_a_replica_that_takes_over_serves_nobody(tmp_path):
    """It may lack the newest writes, here the settling of a unit, and nothing in the ledger would tell."""
    with (
        RedisServer(tmp_path) as master,
        RedisServer(tmp_path, f"replicaof 127.0.0.1 {master.port}") as replica,
    ):
        # A first replica gives its master a new identity, which ends an epoch as well.
        wait_until(lambda: master.client().info("replication")["connected_slaves"], "the replica is there")
        ledger = Ledger(connect(f"redis://127.0.0.1:{master.port}"), "s1")
        ledger.begin_epoch(EPOCH)
        ledger.open(EPOCH, 1, {}, {"E:1:0": "{}"})
        wait_until(lambda: replica.client().exists(ledger.prefix + "units:1"), "the replica has it")
        replica.client().replicaof("no", "one")
        ledger.settle(EPOCH, 1, "E:1:0")
        assert ledger.fence() == EPOCH

        after = Ledger(connect(f"redis://127.0.0.1:{replica.port}"), "s1")
        assert after.payload(1, "E:1:0") == b"{}"
        assert after.fence() is None
        for call in (
            lambda: after.standing(EPOCH),
            lambda: after.settle(EPOCH, 1, "E:1:0"),
            lambda: after.open(EPOCH, 2, {}, {}),
        ):
            with pytest.raises(StaleFence):
                call()
        after.begin_epoch(EPOCH + 1)
        assert after.open(EPOCH + 1, 1, {}, {"E:1:0": "{}"}).opened == 1


def test_a_redis_restarted_from_its_disk_serves_nobody(tmp_path):
    with RedisServer(tmp_path) as server:
        ledger = Ledger(connect(f"redis://127.0.0.1:{server.port}"), "s1")
        ledger.begin_epoch(EPOCH)
        ledger.open(EPOCH, 1, {}, {"E:1:0": "{}"})
        server.client().save()
        ledger.settle(EPOCH, 1, "E:1:0")
        server.kill()
        server.start()
        wait_until(lambda: ledger.payload(1, "E:1:0") == b"{}", "it has what it saved")
        assert ledger.fence() is None


def test_another_unit_of_the_same_name_is_left_alone(ledger):
    """After the ledger went back by hand, on a Redis that never stopped: a task of before is still running."""
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}"})
    saved = {key: ledger.redis.dump(key) for key in ledger.redis.keys(ledger.prefix + "*")}
    ledger.settle(EPOCH, 1, "E:1:0", found={"D:stream:0": b"a and b"})
    _, token = ledger.payload_and_token(1, "D:stream:0")
    ledger.redis.flushall()
    for key, dumped in saved.items():
        ledger.redis.restore(key, 0, dumped)
    ledger.settle(EPOCH, 1, "E:1:0", found={"D:stream:0": b"only c: a and b are on their way"})
    assert not ledger.settle(EPOCH, 1, "D:stream:0", token=token).done
    content, token = ledger.payload_and_token(1, "D:stream:0")
    assert content == b"only c: a and b are on their way"
    assert ledger.settle(EPOCH, 1, "D:stream:0", token=token).front == 1


@pytest.mark.parametrize("lost", ["units:1", "batch:1", "failures:1"])
def test_a_redis_that_evicts_ends_the_epoch(ledger, lost):
    bad = Failure(step="data", gfid="ab", path="p", code="io", error="e")
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}", "E:2:0": "{}"})
    ledger.settle(EPOCH, 1, "E:1:0", failures=[bad])
    ledger.redis.delete(ledger.prefix + lost)
    with pytest.raises(StaleFence):
        ledger.settle(EPOCH, 1, "E:2:0")
    assert ledger.fence() is None


def test_a_deleted_session_leaves_no_key(ledger):
    ledger.open(EPOCH, 1, {}, {"E:1:0": "{}"})
    ledger.sign("beat")
    ledger.erase()
    assert ledger.redis.keys("*") == []
