"""kill -9 of everything, one after another, in the middle of work: each converges, and the mark stays true."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.judge import assert_same
from tests.system.harness import secondary_agents
from tests.system.trees import many_small_files


def busy(root, stop, seed):
    """Random changes, until told to stop."""
    draw = random.Random(seed)
    number = 0
    while not stop.is_set():
        number += 1
        directory = root / f"d{draw.randrange(8)}"
        with contextlib.suppress(OSError, IndexError):  # it is not there, or empty
            what = draw.randrange(10)
            if what < 5:
                directory.mkdir(exist_ok=True)
                (directory / f"n{draw.randrange(200)}").write_bytes(draw.randbytes(draw.randrange(5000)))
            elif what == 5:
                os.rename(directory, root / f"d{draw.randrange(8)}")
            elif what == 6:
                files = sorted(directory.iterdir())
                os.unlink(draw.choice(files))
            elif what == 7:
                files = sorted(directory.iterdir())
                os.rename(draw.choice(files), root / f"d{draw.randrange(8)}" / f"n{draw.randrange(200)}")
            elif what == 8 and number % 40 == 0:
                shutil.rmtree(directory)
            elif what == 9:
                files = sorted(directory.iterdir())
                os.link(draw.choice(files), root / f"l{number}")
        time.sleep(0.002)


def kill_secondary_agents(run):
    run.wait_for(
        lambda: secondary_agents(run), "a secondary agent"
    )  # after the last kill they come with work
    for pid in secondary_agents(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pool_children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_worker_child(run, service):
    children = pool_children(run.pids(service))
    if children:
        os.kill(random.choice(children), signal.SIGKILL)


def flush_and_kill_redis(run):
    client = run.redis()
    client.flushall()
    info = client.info("server")
    client.close()
    os.kill(info["process_id"], signal.SIGKILL)


def flush_redis(run):
    client = run.redis()
    client.flushall()
    client.close()


FAULTS = {
    "a child of the control worker": lambda run: kill_worker_child(run, "worker control"),
    "a child of the data worker": lambda run: kill_worker_child(run, "worker data"),
    "the control worker": lambda run: os.kill(run.pids("worker control"), signal.SIGKILL),
    "the data worker": lambda run: os.kill(run.pids("worker data"), signal.SIGKILL),
    "the agent": lambda run: os.kill(run.pids("agent"), signal.SIGKILL),
    "beat": lambda run: os.kill(run.pids("beat"), signal.SIGKILL),
    "redis, emptied first": flush_and_kill_redis,
    "what redis holds": flush_redis,
    "the secondary agents": kill_secondary_agents,
}


# What is like another one of them, seen from what follows.
_ALIKE = {
    "a child of the data worker",
    "a child of the control worker",
    "the control worker",
    "beat",
    "what redis holds",
}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.slow] if fault in _ALIKE else []) for fault in FAULTS]
)
def test_killed_in_mid_batch(place, fault):
    many_small_files(place.primary, 300, 8)
    stop = threading.Event()
    writer = threading.Thread(target=busy, args=(place.primary, stop, 7))
    with place.run() as run:
        run.wait_idle()
        writer.start()
        try:
            for _ in range(3):
                time.sleep(random.uniform(0.4, 1.2))
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                    FAULTS[fault](run)
            time.sleep(1)
        finally:
            stop.set()
            writer.join()
        run.wait_same(60)
        run.wait_idle(60)
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def test_everything_killed_at_once_and_started_again(place):
    many_small_files(place.primary, 3000, 30)
    run = place.run()
    time.sleep(2.2)  # in the middle of the first crawl
    run.kill()
    stop = threading.Event()
    writer = threading.Thread(target=busy, args=(place.primary, stop, 3))
    with place.run() as again:
        again.wait_idle()
        writer.start()
        time.sleep(1.5)
        again.kill()
        stop.set()
        writer.join()
    with place.run() as third:
        third.wait_same(60)
        assert third.stop() == 0
    assert_same(place.primary, place.secondary)
