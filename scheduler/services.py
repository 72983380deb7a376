"""What runs in each process of a run: the agent, workers, beat, Flower."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import billiard.pool
from celery import signals
from celery.platforms import SecurityWarning

from scheduler.jobs import beat_schedule
from scheduler.supervisor import Service
from tasks import alive, trace
from tasks.app import app
from tasks.canvas import (
    VERIFY,
    alive_queue,
    control_queue,
    data_queue,
    data_queues,
    home_queue,
    node,
)
from tasks.context import context

if TYPE_CHECKING:
    from replication.session import Session
    from scheduler.monitor import MonitorOptions
    from scheduler.options import RunOptions
    from tasks.servers import Servers

log = logging.getLogger("seamark.services")
CONTROL_PROCESSES = 3  # entries of one batch, the mark of another, a tick
_DATA_LATER_S = 2.0  # the start of a run needs the processor for other things
_PATIENCE_S = 60.0
_WAITS_FOR_NOTES = 10
SCHEDULER = "celery.beat:Scheduler"
# What a session needs beside its own process, as people call it; each may run under another supervisor.
ROLES = {alive.AGENT: "agent", alive.CONTROL: "control", alive.DATA: "data", alive.BEAT: "beat"}
_WORKER_STOP = ((signal.SIGTERM, 10.0), (signal.SIGQUIT, 15.0))


@signals.setup_logging.connect
def _keep_our_logging(**_: object) -> None:
    """Being connected is all: Celery then leaves logging as the supervisor has set it up."""


def hurry_children() -> None:
    """Have processes of a worker's pool end soon when they are to.

    One that ends waits until its worker has noted its results, 300 times 0.1 s; a worker that ends does not note
    them any more, and waits for the process. What was not noted is done twice: harmless.
    """
    billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = _WAITS_FOR_NOTES


def worker_service(
    name: str, queues: list[str], processes: int, session: str, connect_after_s: float
) -> Service:
    """One Celery worker with a pool of processes, each of which soon connects to the secondary."""

    def body() -> int:
        begin_worker(name, session, connect_after_s)
        # Celery warns of root because of pickle, which is not accepted here; root reads all of a volume.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        worker = app.Worker(
            hostname=f"{name}@{node()}", queues=[alive_queue(name), *queues], concurrency=processes, pool="prefork", loglevel="WARNING",
            without_gossip=True, without_mingle=True, quiet=True,
        )  # fmt: skip
        worker.start()
        return int(worker.exitcode or 0)

    return Service(f"worker {name}", body, stop_signals=_WORKER_STOP, droppable=True)


def begin_worker(name: str, session: str, connect_after_s: float) -> None:
    """What a worker of the primary's node does before all else: it says who it is, and keeps up with settings."""
    alive.become(f"worker {name}")
    trace.mark_records()
    signals.heartbeat_sent.connect(lambda **_: context(session), weak=False)
    signals.worker_process_init.connect(lambda **_: _connect_early(session, connect_after_s), weak=False)
    hurry_children()


def _connect_early(session: str, after_s: float) -> None:
    """Have the connection ready before the first task of this process wants it."""

    def run() -> None:
        time.sleep(after_s)
        until = time.monotonic() + _PATIENCE_S
        try:
            ctx = context(session)
            while time.monotonic() < until:
                epoch = ctx.progress.brick().epoch
                if ctx.ledger.fence() == epoch:
                    ctx.secondary(epoch)
                    return
                time.sleep(0.02)
        except Exception as error:
            log.debug("not connected early: %s", error)  # the first task says so, or can

    threading.Thread(target=run, name="connect-early", daemon=True).start()


def control_worker(session: Session) -> Service:
    return worker_service("control", [control_queue()], CONTROL_PROCESSES, session.name, 0.0)


def queues_of_data() -> list[str]:
    return [home_queue(), *data_queues(), data_queue(VERIFY)]


def data_worker(session: Session) -> Service:
    return worker_service("data", queues_of_data(), session.jobs, session.name, _DATA_LATER_S)


def beat_service(session: Session) -> Service:
    """Celery beat with our schedule, in memory: its own file would be a pickle, and there is nothing to keep."""

    def body() -> int:
        begin_beat(session.name)
        app.conf.beat_schedule = beat_schedule([session.name])
        app.Beat(scheduler_cls=SCHEDULER, quiet=True, loglevel="WARNING").run()
        return 0

    return Service("beat", body, droppable=True)


def begin_beat(session: str) -> None:
    """Have beat, in this process, send what a session needs, and say with it that it lives."""
    alive.become(alive.BEAT)
    ledger = context(session).ledger

    def sent(sender: str, **_: object) -> None:
        alive.show(ledger)
        context(session)
        log.debug("sent %s", sender)

    signals.after_task_publish.connect(sent, weak=False)


def events_service(state_dir: str) -> Service:
    """What delivers events to webhooks and commands."""

    def body() -> int:
        from scheduler.courier import Courier

        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        Courier(Path(state_dir)).run(stop)
        return 0

    return Service("events", body, droppable=True)


def metrics_service(state_dir: str, address: tuple[str, int]) -> Service:
    """Metrics for Prometheus, on this address and port."""

    def body() -> int:
        from scheduler.metrics import serve

        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        return serve(state_dir, address, stop)

    return Service("metrics", body, droppable=True)


def flower_service(options: RunOptions | MonitorOptions, servers: Servers) -> Service:
    """Flower, on loopback unless told otherwise; a program of its own (seamark/commands/flower.py)."""
    address, port = options.flower_address, options.flower_port or 0
    words = ["--state-dir", options.state_dir, "--address", address, "--port", str(port)]
    if getattr(options, "metrics_port", None) is not None:
        words.append("--no-session-metrics")  # the monitor answers for them

    def body() -> int:
        host, family = (f"[{address}]", socket.AF_INET6) if ":" in address else (address, socket.AF_INET)
        arguments = [sys.executable, "-m", "seamark", "flower", *words]
        try:
            socket.create_server((address, port), family=family).close()
            log.info(
                "Flower: http://%s:%s/sessions (user seamark; seamark flower --show-password)", host, port
            )
            os.execve(sys.executable, arguments, {**os.environ, **servers.environment()})
        except OSError as error:  # what it says itself stands in services.log only
            log.error("Flower cannot listen on %s:%s: %s", host, port, error.strerror)
        return 1

    return Service("flower", body)
