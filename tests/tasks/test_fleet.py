"""What workers say of themselves, with a worker of plain Celery: who is there, who rests, and who is silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from kombu import Connection, Queue

from tasks import fleet
from tasks.servers import of_url
from tasks.turns import Turns

REPOSITORY = Path(__file__).resolve().parents[2]
QUEUES = ["stream.home.12ab", "rsync.home.12ab", "stream.other.34cd"]


def wait_for(condition, what):
    until = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < until, what
        time.sleep(0.1)
    return found


@pytest.fixture
def worker(redis_server, tmp_path):
    """As docs/operations.md says: plain Celery, with our queues."""
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tasks.app", "worker", "-n", "w@host", "-c", "1", "--without-gossip",
             "--without-mingle", "-l", "WARNING", "-Q", ",".join(QUEUES)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SEAMARK_BROKER": redis_server.url, "SEAMARK_STATE_DIR": str(tmp_path)},
            cwd="/", stdout=log, stderr=log,
        )  # fmt: skip
    yield process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


def consumed(client):
    """Of which queues it takes, as Celery's own remote control tells it."""
    from tasks.app import app

    (queues,) = (app.control.inspect(timeout=20, limit=1).active_queues() or {}).values()
    return {queue["name"] for queue in queues}


def test_a_worker_shows_itself_rests_falls_silent_and_leaves(worker, redis_server):
    from tasks.app import app, use

    use(of_url(redis_server.url))
    with redis_server.client() as client:
        (row,) = wait_for(lambda: fleet.rows(client), "its row")
        assert (row.name, row.role, row.sessions, row.processes) == ("w@host", "data", ("home", "other"), 1)
        assert row.state(fleet.clock(client)) == "idle"
        assert fleet.data_processes(client, "home.12ab") == 1 and fleet.data_processes(client, "home.zz") == 0
        # A process of it could not work for one of its sessions.
        client.hset(
            "seamark:fleet:rests:w@host", "home", json.dumps([fleet.clock(client) + 6, "not mounted"])
        )
        wait_for(lambda: fleet.rows(client)[0].rests == {"home": "not mounted"}, "its rest")
        assert consumed(client) == {"stream.other.34cd"}
        assert set(fleet.rows(client)[0].sessions) == {"home", "other"}
        wait_for(lambda: not fleet.rows(client)[0].rests, "the end of its rest")
        assert consumed(client) == set(QUEUES)
        worker.send_signal(signal.SIGSTOP)
        last = fleet.rows(client)[0]
        assert last.state(last.at + fleet.SILENT_S + 0.1) == "silent"
        worker.send_signal(signal.SIGCONT)
        worker.terminate()
        worker.wait(60)
        assert fleet.rows(client) == []
    app.close()


def row(**changes):
    values = {"name": "w", "host": "h", "pid": 1, "role": "data", "sessions": ("a",), "fleets": ("a.1",), "processes": 2,
              "now": (), "done": 0, "since": 1.0, "at": 1.0, **changes}  # fmt: skip
    return fleet.Row(**values)


def test_states():
    assert row().state(2.0) == "idle"
    assert row(now=("a task",)).state(2.0) == "busy"
    assert row(now=("a task",), leaving=True).state(2.0) == "leaving"
    assert row(leaving=True).state(2.0 + fleet.SILENT_S) == "silent"


def test_what_was_silent_for_a_day_is_forgotten(redis_server):
    with redis_server.client() as client:
        now = fleet.clock(client)
        for name, at in (("old", now - 90_000), ("new", now - 80_000), ("strange", now)):
            text = msgspec.json.encode(row(name=name, at=at)) if name != "strange" else b"{}"
            client.hset(fleet.WORKERS, name, text)
        assert [each.name for each in fleet.rows(client)] == ["new"]
        assert not client.hexists(fleet.WORKERS, "old")
        assert fleet.data_processes(client, "a.1") == 0


def test_a_session_rests_longer_each_time_until_it_works(redis_server, monkeypatch):
    monkeypatch.setattr(fleet, "_me", "w")
    with redis_server.client() as client:
        waits = []
        for _ in range(6):
            fleet.rest(client, "home", "why")
            until, why = json.loads(client.hget("seamark:fleet:rests:w", "home"))
            assert why == "why"
            waits.append(round(until - fleet.clock(client)))
        assert waits == [5, 10, 20, 40, 60, 60]
        fleet.content("home")
        fleet.rest(client, "home", "why")
        assert json.loads(client.hget("seamark:fleet:rests:w", "home"))[0] - fleet.clock(client) < 6
    fleet.content("home")


def test_messages_are_taken_in_turn(redis_server):
    """Through kombu, as a worker takes them: the order of Turns, with the options of celeryconfig."""
    queues = ["stream.busy.1", "bulk.busy.1", "stream.quiet.2"]
    with Connection(
        redis_server.url,
        transport_options=of_url(redis_server.url).celery_settings()["broker_transport_options"],
    ) as connection:
        channel = connection.default_channel
        assert isinstance(channel._queue_cycle, Turns)
        producer = connection.Producer()
        for queue, amount in zip(queues, (20, 20, 5), strict=True):
            for _ in range(amount):
                producer.publish({}, routing_key=queue, declare=[Queue(queue)])
        taken = []
        with connection.Consumer(
            [Queue(queue) for queue in queues],
            callbacks=[
                lambda _, message: (taken.append(message.delivery_info["routing_key"]), message.ack())
            ],
        ):
            while len(taken) < 12:
                connection.drain_events(timeout=10)
        assert taken[:10].count("stream.quiet.2") == 5
        assert taken[:10].count("bulk.busy.1") in (2, 3)
