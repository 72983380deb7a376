"""What is judged healthy, and what signs of life are: by themselves, and against a real Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.failures import Failure
from replication.server_settings import ServerSettings
from replication.session import SessionDir
from scheduler.health import CRASHES, REDIS_S, STALLED_S, Look, Reason, judge
from scheduler.procfs import Stillness, born, is_there, stopped
from scheduler.signs import SILENT_S, START_S, Sign, Signs
from scheduler.snapshot import ProgressSnapshot
from scheduler.status_file import StatusFile, last_report
from scheduler.supervisor import Service
from scheduler.vigil import Clock
from tasks import alive
from tasks.ledger import Ledger, connect
from tasks.servers import Servers
from tests.servers import free_port

ROLES = (alive.BEAT, alive.CONTROL, alive.DATA, "agent", alive.SECONDARY)


def sign(role, silent_s=1.0, **more):
    return Sign(role=role, pid=1000, silent_s=silent_s, seen=more.pop("seen", True), **more)


def well(**changes):
    return Look(**{"signs": [sign(role) for role in ROLES], "lag_s": 1.0, **changes})


def codes(look):
    return [reason.code for reason in judge(look)]


def test_nothing_wrong_is_healthy():
    assert judge(well()) == []
    assert judge(well(working=True, unmoved_s=STALLED_S - 1, rpo_s=2)) == []


FAILURE = Failure(
    step="data", gfid=None, path="a/b", code="io", error="Input/output error", first_ns=1, last_ns=2
)
WRONG = {
    "redis": {"redis_silent_s": REDIS_S + 1},
    "redis ": {"redis_silent_s": REDIS_S + 1, "redis_error": "You can't write against a read only replica."},
    "broker": {"broker_error": "broker amqp://mq//: Connection refused"},
    **{role.replace(" ", "-"): {"signs": [sign(role, SILENT_S + 1)]} for role in ROLES},
    "beat ": {"signs": [sign(alive.BEAT, deaths=CRASHES, why="exit code 1")]},
    "agent ": {"signs": [sign("agent", START_S + 1, seen=False)]},
    "worker-data ": {"signs": [sign(alive.DATA, stopped=(7, 8))]},
    "secondary-full": {"trouble": ("no-space", "secondary: No space left [no-space]")},
    "secondary-read-only": {"trouble": ("read-only", "secondary: read-only")},
    "secondary ": {"trouble": ("unreachable", "backup@host: connection refused")},
    "unexpected": {"trouble": ("unexpected", "E:1:0: KeyError")},
    "stalled": {"working": True, "unmoved_s": STALLED_S + 1},
    "failures": {"failures": 3, "oldest": FAILURE},
    "rpo": {"rpo_s": 10, "lag_s": 11.0},
    "clock": {"clock_jump_s": -3600.0},
    "clock ": {"ahead_s": 3600.0},
}


@pytest.mark.parametrize("code", WRONG)
def test_each_thing_that_is_wrong_has_its_reason(code):
    (reason,) = judge(well(**WRONG[code]))
    assert reason.code == code.strip()
    assert reason.faulty == (reason.code not in ("failures", "rpo", "clock"))
    assert reason.text


@given(st.sets(st.sampled_from(sorted(WRONG))))
def test_several_at_once_are_never_healthy(wrong):
    changes = {}
    for code in wrong:
        changes |= WRONG[code]
    assert bool(judge(well(**changes))) == bool(wrong)


def test_the_root_comes_first_and_hides_what_follows_from_it():
    look = well(
        redis_silent_s=60,
        signs=[sign(role, 60) for role in ROLES],
        working=True,
        unmoved_s=600,
        rpo_s=1,
        lag_s=60.0,
    )
    assert codes(look) == ["redis", "rpo"]
    assert codes(well(signs=[sign(alive.DATA, 60)], working=True, unmoved_s=600)) == ["worker-data"]


def test_paused_is_not_stalled():
    assert codes(well(paused=True, working=True, unmoved_s=STALLED_S + 1)) == []


def test_a_name_of_any_bytes_is_cut_and_printable():
    failure = Failure(
        step="data", gfid=None, path="x" * 500 + "\udcff", code="io", error="E", first_ns=1, last_ns=2
    )
    (reason,) = judge(well(failures=1, oldest=failure))
    reason.text.encode()
    assert len(reason.text) < 250


# ---- signs


class FakeStore:
    def last_closed(self):
        return None


class FakeContext:
    """A session with a real ledger, without changelog."""

    class place:  # noqa: N801
        detector = staticmethod(lambda: "scan")

    store = FakeStore()

    def __init__(self, url):
        self.ledger = Ledger(connect(url, 0.5), "s1")


def service(name, started=0.0):
    return Service(name, lambda: 0, pid=os.getpid(), started=started)


SERVICES = [service(name) for name in (alive.BEAT, alive.CONTROL, alive.DATA)]


def silent(found):
    return {each.role for each in found if each.is_silent}


def test_whoever_stops_giving_signs_is_silent_and_is_heard_again(redis_server):
    ctx = FakeContext(redis_server.url)
    signs = Signs(ctx)
    roles = (alive.BEAT, alive.CONTROL, alive.DATA, alive.SECONDARY)
    for at in range(0, 100, 5):
        for role in roles:
            if role != alive.DATA or at < 50:
                ctx.ledger.sign(role)
        found = signs.look(SERVICES, float(at))
        assert silent(found) == ({alive.DATA} if at - 45 > SILENT_S else set()), at
    ctx.ledger.sign(alive.DATA)
    assert silent(signs.look(SERVICES, 101.0)) == set()


def test_nobody_is_blamed_who_was_not_asked(redis_server):
    ctx = FakeContext(redis_server.url)
    signs = Signs(ctx)
    for role in (alive.BEAT, alive.CONTROL, alive.DATA, alive.SECONDARY):
        ctx.ledger.sign(role)
    for at in range(1, 60):
        last = silent(signs.look(SERVICES, float(at)))
    assert last == {alive.BEAT}


def test_a_redis_that_hangs_is_noticed_and_nobody_else_is_blamed(redis_server):
    ctx = FakeContext(redis_server.url)
    signs = Signs(ctx)
    signs.look(SERVICES, 0.0)
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        assert silent(signs.look(SERVICES, 40.0)) == set()
        assert signs.redis_silent_since == 40.0
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    time.sleep(0.6)
    assert silent(signs.look(SERVICES, 41.0)) == set()
    assert signs.redis_silent_since is None


def test_a_redis_that_only_answers_is_not_taken_for_one_that_works(redis_server):
    """A replica shows what it has, and refuses what is new: as the old master does after a failover."""
    signs = Signs(FakeContext(redis_server.url))
    signs.look(SERVICES, 0.0)
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", "1")
        try:
            assert silent(signs.look(SERVICES, 40.0)) == set()
            assert signs.redis_silent_since == 40.0
            assert "read only replica" in signs.redis_error
        finally:
            client.replicaof("no", "one")
    signs.look(SERVICES, 41.0)
    assert signs.redis_silent_since is None
    assert signs.redis_error == ""


def test_a_broker_that_is_away_is_said_to_be_and_excuses_the_roles(redis_server, monkeypatch):
    elsewhere = Servers(ServerSettings(), f"amqp://u:s3cret@127.0.0.1:{free_port()}//", redis_server.url)
    monkeypatch.setattr("scheduler.signs.servers", lambda: elsewhere)
    signs = Signs(FakeContext(redis_server.url))
    for now in (0.0, 10.0, 20.0, 60.0):
        assert silent(signs.look(SERVICES, now)) == set()
    assert "refused" in signs.broker_error
    assert "s3cret" not in signs.broker_error


def test_a_new_epoch_forgets_no_sign(redis_server):
    ledger = Ledger(connect(redis_server.url), "s1")
    ledger.sign(alive.BEAT)
    ledger.begin_epoch(3)
    assert ledger.signs() == {alive.BEAT: 1}


# ---- processes and clocks


def test_a_stopped_process_is_still_and_said_to_be():
    with subprocess.Popen(["sh", "-c", "while :; do sleep 0.05; done"]) as process:
        looks = Stillness()
        looks.look([process.pid], 0.0)
        time.sleep(0.5)
        assert looks.look([process.pid], 10.0) == {process.pid: 0.0}
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert stopped(process.pid)
        looks.look([process.pid], 20.0)
        time.sleep(0.2)
        assert looks.look([process.pid], 30.0) == {process.pid: 10.0}
        since = born(process.pid)
        assert is_there(process.pid, since)
        assert not is_there(process.pid, since + 1)
        process.kill()
        process.wait()
        assert not is_there(process.pid, since)


def test_a_clock_that_is_set_is_noticed_for_a_minute(monkeypatch):
    now = {"time": 1000.0, "uptime": 10.0}
    monkeypatch.setattr("scheduler.vigil.time.time", lambda: now["time"])
    monkeypatch.setattr("scheduler.vigil.uptime", lambda: now["uptime"])
    clock = Clock()

    def after(seconds, jump=0.0):
        now["time"] += seconds + jump
        now["uptime"] += seconds
        return clock.jumped()

    assert after(5) == 0
    assert after(1, jump=3600) == 3600
    assert after(59) == 3600
    assert after(5) == 0
    assert after(1, jump=-3600) == -3600


def test_a_report_holds_names_of_any_bytes(tmp_path):
    place = SessionDir(tmp_path, "s1")
    place.path.mkdir(parents=True)
    reason = Reason(code="unexpected", text="E:1: \udcff")
    StatusFile(place).write(ProgressSnapshot(state="trouble: \udcff"), reasons=(reason,))
    StatusFile(place).failed("primary \udcff: No such file")
    report = last_report(place)
    assert report.failed == "primary \\udcff: No such file"
    assert report.age() < 60
