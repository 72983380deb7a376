"""Somebody who can write to the broker, against a session at work: without a key, and where messages are signed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest

from tests.judge import assert_same
from tests.security.broker_writer import SIGNED, BrokerWriter, control_queue, sign
from tests.servers import RabbitMQ, RedisServer, wait_until
from tests.system.harness import REPOSITORY
from tests.system.trees import many_small_files

NAME, SECRET = "signed", os.urandom(32).hex()


@pytest.fixture
def broker(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "message.key"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def started(place, broker, **environment):
    """A session at work, whose first crawl is done."""
    many_small_files(place.primary, 40, 4)
    broker_url = f"redis://127.0.0.1:{broker.port}/0"
    return place.run("--name", NAME, env={"SEAMARK_BROKER": broker_url, **environment}), broker_url


def refusals(run):
    """Lines about what was refused, of all processes."""
    files = [path.read_text(errors="replace") for path in run.state.glob("sessions/*/*.log")]
    said = [message.get("message", "") for message in run.of_type("log")]
    return [line for text in files for line in text.splitlines() if "refused" in line] + [
        line for line in said if "refused" in line
    ]


def all_is_taken(run, client, queue):
    """Nothing waits, and nothing is handed out that is not done."""
    run.wait_for(lambda: not client.llen(queue) and not client.hlen("unacked"), "all is taken", 60)


def start_over(**more):
    """What anybody can see come of it: the epoch is another one afterwards."""
    return {"session": NAME, "epoch": more.pop("epoch"), "why": "somebody says so", **more}


def still_works(place, run):
    (place.primary / "afterwards").write_text("x")
    run.wait_same(60)
    assert run.stop() == 0
    assert_same(place.primary, place.secondary)


ODD_HEADERS = [
    None, {}, {"task": []}, {"task": {}}, {"task": "scheduler.jobs.sweep"}, {"task": None, "id": 3},
    {"task": "os.system", "id": "a"}, {"task": "scheduler.jobs.sweep", "id": "x", "eta": "never"},
    {"task": "scheduler.jobs.sweep", "id": "x", "expires": []}, {"task": "scheduler.jobs.sweep", "id": [1]},
    {"task": "scheduler.jobs.sweep", "id": "x\n2026-01-01T00:00:00 INFO forged"}, {"task": "a" * 300, "id": "x"},
    {"task": "scheduler.jobs.sweep", "id": "x", "timelimit": "a"}, {"task": "scheduler.jobs.sweep", "id": "x", "lang": "c"},
    {"task": "tasks.mark.update_stime", "id": "x", "retries": "many", "stamped_headers": 3},
]  # fmt: skip
ODD_BODIES = [
    "", "x", "abc", "null", "[]", "{}", "[1, 2, 3]", "[[], {}, null]", "[[], {}, []]", '[[], {}, {"chord": 3}]', "[" * 5000,
    '{"task": "scheduler.jobs.sweep", "id": "p1", "args": ["signed"], "kwargs": {}}', '{"task": "os.system", "id": "p1"}',
    '[[], {"session": "../../etc"}, {}]', '[[], {"session": "signed", "epoch": -1, "why": "x"}, {"callbacks": [3]}]',
]  # fmt: skip


@pytest.mark.timeout(240)
def test_messages_that_are_none_end_nothing(place, broker):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    run, url = started(place, broker)
    with run, BrokerWriter(url) as writer:
        run.wait_idle(60)
        client = broker.client()
        queue = control_queue(client)
        before = {role: run.pids(role) for role in ("worker control", "worker data")}
        mark, epoch = run.progress()["stime_ns"], run.progress()["epoch"]
        writer.task(queue, "os.system", ["true"], {})
        for headers in ODD_HEADERS:
            for body in ODD_BODIES:
                kind = draw.choice(
                    ["application/json"] * 3
                    + ["application/x-python-serialize", "text/plain", "application/data"]
                )
                writer.raw(queue, body, headers=headers, content_type=kind)
        for number in range(100):  # as they should be, for what does not exist
            unit = draw.choice(["E:1:0", "C:0", "D:stream:E:1:0:0", "R:tar:1.0", "N:rsync:0"])
            task = {"E": "tasks.entry.sync_entries", "C": "tasks.crawl.crawl_subtree"}.get(
                unit[0], f"tasks.data.sync_by_{unit.split(':')[1]}"
            )
            said = {
                "session": NAME,
                "epoch": draw.choice([0, epoch, epoch + 1, 2**62]),
                "batch": draw.randrange(9),
                "unit": unit,
            }
            writer.task(
                queue,
                task if number % 4 else "tasks.mark.update_stime",
                [],
                said if number % 4 else {k: v for k, v in said.items() if k != "unit"},
            )
        writer.command("nothing", {"a": 1})
        writer.command("x", body="[]")
        all_is_taken(run, client, queue)
        assert {role: run.pids(role) for role in ("worker control", "worker data")} == before
        assert run.progress()["stime_ns"] >= mark
        said = refusals(run)
        assert any("there is no task" in line for line in said), said
        assert len(said) < 200  # of nearly three hundred
        # What is not even a frame of kombu's ends the connection, and perhaps the worker; but never the work.
        client.lpush(queue, "no message at all", "[]", "{}")
        still_works(place, run)


@pytest.mark.timeout(240)
def test_only_what_is_signed_is_done(place, broker, key):
    run, url = started(place, broker, SEAMARK_MESSAGE_KEY_FILE=str(key))
    with run, BrokerWriter(url) as writer:
        run.wait_idle(60)
        client = broker.client()
        queue = control_queue(client)
        workers = run.pids("worker control")
        epoch = run.progress()["epoch"]
        said = start_over(epoch=epoch)
        name = "scheduler.jobs.start_over"
        writer.task(queue, name, [], said)
        writer.task(queue, name, [], said, content_type="application/data")
        writer.task(queue, name, [], said, secret="f" * 64)
        writer.task(queue, name, [], said, secret=SECRET, sealed_for="scheduler.jobs.crawl_tick")
        body = json.dumps([[], said, {"seamark_seal": [name, "1"]}])
        writer.raw(
            queue,
            sign(body, SECRET).replace("somebody", "s0mebody"),
            content_type=SIGNED,
            headers={"task": name, "id": "1"},
        )
        writer.raw(queue, sign(body, SECRET), content_type=SIGNED, headers={"task": name, "id": "2"})
        v1 = json.dumps({"task": name, "id": "1", "args": [], "kwargs": said})
        writer.raw(queue, v1)
        writer.raw(queue, sign(v1, SECRET), content_type=SIGNED)
        writer.command("shutdown")
        writer.command("shutdown", secret="0" * 64)
        writer.command("shutdown", body="text")
        all_is_taken(run, client, queue)
        time.sleep(3)
        assert run.pids("worker control") == workers
        assert run.progress()["epoch"] == epoch
        lines = refusals(run)
        for words in ("not signed", "signed by another key", "for another task"):
            assert any(words in line for line in lines), (words, lines)
        # What is signed as it should be is done: were it not, all of the above would show nothing.
        writer.task(queue, name, [], said, secret=SECRET)
        wait_until(lambda: run.progress()["epoch"] > epoch, "a signed task is done")
        writer.command("shutdown", secret=SECRET)
        wait_until(lambda: run.pids("worker control") != workers, "a signed command is obeyed")
        (place.primary / "afterwards").write_text("x")
        run.wait_same(60)
        # Results of Celery are signed too.
        for result in client.scan_iter(match="celery-task-meta-*"):
            text = client.get(result)
            assert text is None or text[:1] != b"{", text
        assert run.stop() == 0
        assert_same(place.primary, place.secondary)


def test_a_key_that_others_can_read_is_refused(place, broker, key):
    url = {"SEAMARK_BROKER": f"redis://127.0.0.1:{broker.port}/0", "SEAMARK_MESSAGE_KEY_FILE": str(key)}
    (place.primary / "file").write_text("x")
    for make_wrong, words in (
        (lambda: key.chmod(0o644), "chmod 600"),
        (lambda: (key.chmod(0o600), key.write_text("short\n")), "openssl rand -hex 32"),
        (key.unlink, "cannot read"),
    ):
        make_wrong()
        run = place.once(env=url)
        assert run.process.returncode == 2, run.report()
        assert words in run.report()
        assert SECRET not in run.report()
    assert not place.secondary.exists()


@pytest.mark.timeout(240)
def test_flower_and_celerys_own_words_work_with_signed_messages(place, broker, key):
    run, url = started(place, broker, SEAMARK_MESSAGE_KEY_FILE=str(key))
    with run:
        run.wait_idle(60)
        asked = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "tasks.app", "inspect", "ping"], cwd=REPOSITORY, capture_output=True, text=True,
            env={**os.environ, "SEAMARK_BROKER": url, "SEAMARK_MESSAGE_KEY_FILE": str(key), "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert "2 nodes online" in asked.stdout, asked.stdout + asked.stderr
        assert run.stop() == 0


@pytest.fixture
def rabbit(tmp_path, broker):
    """A RabbitMQ, and the environment that has it for a broker beside a Redis."""
    with RabbitMQ(tmp_path) as server:
        server.environment = {
            "SEAMARK_BROKER": server.url,
            "SEAMARK_REDIS": f"redis://127.0.0.1:{broker.port}/0",
        }
        server.control_queue = lambda: next(each for each in server.queues() if each.startswith("control."))
        yield server


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_messages_that_are_none_end_nothing_on_rabbitmq(place, rabbit):
    many_small_files(place.primary, 40, 4)
    with place.run("--name", NAME, env=rabbit.environment) as run, BrokerWriter(rabbit.url) as writer:
        run.wait_idle(240)
        workers = {role: run.pids(role) for role in ("worker control", "worker data")}
        queue = rabbit.control_queue()
        writer.task(queue, "os.system", ["true"], {})
        for headers in ODD_HEADERS:
            for body in ODD_BODIES:
                writer.raw(queue, body, headers=headers)
        for kind in ("application/x-python-serialize", "text/plain", "application/data"):
            writer.raw(queue, "x", content_type=kind)
        writer.command("nothing", {"a": 1})
        writer.command("x", body="[]")
        writer.command("x", body="no json")
        run.wait_for(lambda: any("there is no task" in line for line in refusals(run)), "a refusal", 60)
        time.sleep(3)
        assert {role: run.pids(role) for role in workers} == workers
        still_works(place, run)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_only_what_is_signed_is_done_on_rabbitmq(place, rabbit, key):
    many_small_files(place.primary, 40, 4)
    name = "scheduler.jobs.start_over"
    environment = {**rabbit.environment, "SEAMARK_MESSAGE_KEY_FILE": str(key)}
    with place.run("--name", NAME, env=environment) as run, BrokerWriter(rabbit.url) as writer:
        run.wait_idle(240)
        workers, epoch = run.pids("worker control"), run.progress()["epoch"]
        queue, said = rabbit.control_queue(), start_over(epoch=epoch)
        writer.task(queue, name, [], said)
        writer.task(queue, name, [], said, secret="f" * 64)
        writer.task(queue, name, [], said, secret=SECRET, sealed_for="scheduler.jobs.crawl_tick")
        writer.command("shutdown")
        writer.command("shutdown", secret="0" * 64)
        for words in ("not signed", "signed by another key", "for another task"):
            run.wait_for(lambda those=words: any(those in line for line in refusals(run)), words, 60)
        time.sleep(3)
        assert (run.pids("worker control"), run.progress()["epoch"]) == (workers, epoch)
        writer.task(queue, name, [], said, secret=SECRET)
        run.wait_for(lambda: run.progress()["epoch"] > epoch, "a signed task is done", 60)
        writer.command("shutdown", secret=SECRET)
        run.wait_for(lambda: run.pids("worker control") != workers, "a signed command is obeyed", 60)
        still_works(place, run)
