"""Sessions on servers of other people: TLS and passwords, Sentinel, RabbitMQ; and what becomes of them when those die."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from replication.session import SessionDir
from scheduler.forget import forget_on_servers
from tests.judge import assert_same
from tests.servers import Certificates, RabbitMQ, RedisServer, free_port, tls_lines, wait_until
from tests.system.test_faults import busy, kill_worker_child
from tests.system.trees import many_small_files

# The setting is the one of the Celery that we require.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
# As docs/operations.md has it, "Brokers".
LEAST = (
    "~seamark:* ~control* ~alive.* ~stream* ~rsync* ~tar* ~bulk* ~data* ~_kombu.* ~unacked* ~celery* ~chord-* ~*.pidbox* "
    "&/0.celery.pidbox &/0.celeryev/* &celery-task-meta-* +@all -@admin -@dangerous +info"
)


@contextlib.contextmanager
def changing(place, seed=7):
    """The primary changes all the time."""
    stop = threading.Event()
    writer = threading.Thread(target=busy, args=(place.primary, stop, seed))
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def in_the_end_the_same(place, run):
    run.wait_same(150)
    run.wait_idle(150)
    # What moved while it was read is tried again after some seconds, and is there by then.
    run.wait_for(lambda: run.status.get("failures") == 0, "no failure is left", 60)
    assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def test_tls_a_password_from_a_file_and_a_user_who_may_do_little(place, tmp_path):
    certificates = Certificates(tmp_path)
    secret = tmp_path / "password"
    secret.write_text("s3cret!\n")
    secret.chmod(0o600)
    users = ["user default off", f"user seamark on >s3cret! {LEAST}"]
    many_small_files(place.primary, 60, 4)
    with RedisServer(tmp_path, *tls_lines(certificates, "localhost"), *users) as server:
        environment = {"SEAMARK_BROKER_PASSWORD_FILE": str(secret), "SEAMARK_TLS_CA": certificates.ca}
        options = ("--once", "--broker", f"rediss://seamark@localhost:{server.port}/0")
        shown = set()
        with place.run(*options, env=environment) as run:
            while run.process.poll() is None:
                for pid in [run.process.pid, *run.children()]:
                    with contextlib.suppress(OSError):
                        shown.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                        shown.add(Path(f"/proc/{pid}/environ").read_bytes())
                time.sleep(0.01)
            assert run.wait(5) == 0, run.report()
        assert_same(place.primary, place.secondary)
    assert len(shown) > 4
    assert not any(b"s3cret!" in text for text in shown)
    written = [path for path in place.state.rglob("*") if path.is_file()]
    assert not any(b"s3cret!" in path.read_bytes() for path in written)
    assert "s3cret!" not in run.report()


@pytest.mark.slow
def test_sentinels_choose_another_master_in_mid_load(place, tmp_path):
    """The new master may lack the last writes, and has another history: a new epoch begins, and nothing is lost."""
    password = ("requirepass s3cret", "masterauth s3cret")
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(RedisServer(tmp_path, *password))
        follow = f"replicaof 127.0.0.1 {master.port}"
        replica = stack.enter_context(RedisServer(tmp_path, *password, follow))
        told = [
            f"sentinel monitor ours 127.0.0.1 {master.port} 2", "sentinel auth-pass ours s3cret",
            "sentinel down-after-milliseconds ours 2000", "sentinel failover-timeout ours 10000",
        ]  # fmt: skip
        sentinels = [stack.enter_context(RedisServer(tmp_path, *told, sentinel=True)) for _ in range(3)]
        for sentinel in sentinels:
            wait_until(
                lambda one=sentinel: one.client().execute_command("SENTINEL", "CKQUORUM", "ours"), "a quorum"
            )
            wait_until(
                lambda one=sentinel: one.client(decode_responses=True).sentinel_slaves("ours"), "a replica"
            )
        url = ";".join(f"sentinel://:s3cret@127.0.0.1:{sentinel.port}/0" for sentinel in sentinels)
        environment = {"SEAMARK_BROKER": url, "SEAMARK_SENTINEL_MASTER": "ours"}
        many_small_files(place.primary, 300, 8)
        with place.run(env=environment) as run:
            run.wait_idle(150)
            before = run.progress()["epoch"]
            with changing(place):
                time.sleep(3)
                master.kill()
                wait_until(
                    lambda: replica.client(password="s3cret").info("replication")["role"] == "master",
                    "another master",
                )
                time.sleep(3)
            run.wait_for(lambda: run.progress()["epoch"] > before, "a new epoch", 150)
            in_the_end_the_same(place, run)


@pytest.mark.slow
def test_a_redis_that_is_gone_for_a_while_is_waited_for(place, tmp_path):
    with RedisServer(tmp_path) as server, RedisServer(tmp_path) as broker:
        many_small_files(place.primary, 200, 8)
        urls = [f"redis://127.0.0.1:{one.port}" for one in (broker, server)]
        with place.run("--broker", urls[0], "--redis", urls[1]) as run:
            run.wait_idle(150)
            for one in (server, broker):
                with changing(place):
                    time.sleep(1)
                    one.kill()
                    time.sleep(1)
                time.sleep(20)
                one.start()
                run.wait_same(150)
            in_the_end_the_same(place, run)


@pytest.mark.slow
def test_a_ledger_that_is_put_back_by_hand(place, tmp_path):
    """On a Redis that never stops, so that no history of its tells: again and again, in the middle of work."""
    with RedisServer(tmp_path) as server:
        many_small_files(place.primary, 300, 8)
        with place.run("--broker", f"redis://127.0.0.1:{server.port}") as run:
            run.wait_idle(150)
            client = server.client()
            with changing(place):
                for _ in range(6):
                    saved = {
                        key: (max(client.pttl(key), 0), client.dump(key))
                        for key in client.scan_iter(match="seamark:*")
                    }
                    time.sleep(random.uniform(0.5, 3))
                    pipe = client.pipeline(transaction=True)
                    for key in client.scan_iter(match="seamark:*"):
                        pipe.delete(key)
                    for key, (expires_ms, dumped) in saved.items():
                        if dumped is not None:
                            pipe.restore(key, expires_ms, dumped, replace=True)
                    pipe.execute()
                    time.sleep(2)
            in_the_end_the_same(place, run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rabbitmq_and_a_redis(place, tmp_path):
    many_small_files(place.primary, 300, 8)
    with RedisServer(tmp_path) as server, RabbitMQ(tmp_path) as rabbit:
        environment = {"SEAMARK_BROKER": rabbit.url, "SEAMARK_REDIS": f"redis://127.0.0.1:{server.port}"}
        with place.run("--name", "queues", env=environment) as run:
            run.wait_idle(240)
            assert not any("celery_delayed" in name for name in rabbit.queues())
            with changing(place):
                time.sleep(2)
                kill_worker_child(run, "worker data")
                os.kill(run.pids("worker control"), signal.SIGKILL)
                time.sleep(1)
                os.kill(run.pids("worker data"), signal.SIGKILL)
                time.sleep(1)
            run.wait_same(240)
            with changing(place, 8):
                time.sleep(2)
                rabbit.kill()
                time.sleep(2)
            rabbit.start()
            in_the_end_the_same(place, run)
        assert {name.split(".")[0] for name in rabbit.queues()} >= {"control", "stream", "rsync", "tar"}
        forget_on_servers(SessionDir(place.state, "queues"))
        left = rabbit.queues()
        assert not {name for name in left if "queues" in name}, left
        until = time.monotonic() + 30
        while keys := list(
            server.client().scan_iter(match="seamark:*")
        ):  # a lease that was given back expires
            assert time.monotonic() < until, keys
            time.sleep(0.5)
        exchanges = {line.partition("\t")[0] for line in rabbit.ask("list_exchanges", "name")}
        assert not {name for name in exchanges if "queues" in name}, exchanges


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_rabbitmq_refuses(place, tmp_path):
    with RedisServer(tmp_path) as server, RabbitMQ(tmp_path) as rabbit:
        ledgers = {"SEAMARK_REDIS": f"redis://127.0.0.1:{server.port}"}
        for url, words in (
            (rabbit.url.replace("guest@", "s3cret@"), "ACCESS_REFUSED"),
            (rabbit.url[:-1] + "nowhere", "vhost nowhere not found"),
        ):
            run = place.once(env={**ledgers, "SEAMARK_BROKER": url})
            assert run.process.returncode == 1
            (error,) = run.of_type("error")
            assert words in error["message"]
            assert "s3cret" not in error["message"]
        away = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
        assert place.once(env={**ledgers, "SEAMARK_BROKER": away}).process.returncode == 5
