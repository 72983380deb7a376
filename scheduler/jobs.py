"""The scheduled jobs and the tick, as Celery tasks on the control queue."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.schedules import schedule

from replication.errors import SeamarkError
from replication.failures import passing_due
from replication.remote.answers import SecondaryError
from scheduler import checkpointing, drilling, snapshots
from scheduler.crawl import Crawler
from scheduler.epoch import start_over as begin_again
from scheduler.resync import pending, resync_pending
from scheduler.retry import retry_failures as retry
from scheduler.send import send
from scheduler.sweep import sweep as sweep_once
from scheduler.telling import tell
from scheduler.verify import nightly
from tasks import alive
from tasks.app import app
from tasks.canvas import alive_queue, control_queue, retry_signature
from tasks.context import context
from tasks.ledger import StaleFence
from tasks.link import LinkRests
from tasks.unit import note_taken_over
from tasks.visibility import renew

if TYPE_CHECKING:
    from celery import Task

    from tasks.context import Context

log = logging.getLogger("seamark.jobs")
_EVERY_S = 5
_PERIODIC = (
    "crawl_tick",
    "sweep",
    "retry_failures",
    "resync",
    "check_checkpoints",
    "take_snapshot",
    "hold_drill",
    "verify_slice",
)
_SECONDARY_S = 10  # until a secondary that was asked is taken for silent
_LOCK_S = 10  # a tick that was killed holds the others up for no longer


@app.task(bind=True, name="scheduler.jobs.crawl_tick", ignore_result=True)
def crawl_tick(_task: Task[..., Any], session: str) -> str:
    """Look what there is to do next. One at a time; ticks that meet a running one make it look again."""
    ctx = context(session)
    ledger = ctx.ledger
    ledger.ask("tick")
    says = "another tick is at it"
    while (asked := ledger.asked("tick")) and ledger.try_lock("tick", _LOCK_S):
        try:
            says = _tick(ctx)
        finally:
            ledger.unlock("tick")
        if ledger.asked("tick") == asked:
            break
    if ledger.once_in(1, "soon") and ctx.progress.look(passing_due):
        send(retry_signature(session, at_once=False))
    return says


@app.task(bind=True, name="scheduler.jobs.answer", ignore_result=True)
def answer(_task: Task[..., Any], session: str) -> str:
    """Say that this worker is alive: sent by beat to a queue that no other worker consumes."""
    alive.show(context(session).ledger)
    return "alive"


@app.task(bind=True, name="scheduler.jobs.ask_secondary", ignore_result=True)
def ask_secondary(_task: Task[..., Any], session: str, anew: bool = False) -> str:
    """Whether the secondary answers, also while there is nothing to send. ``anew``: which one it is, too."""
    ctx = context(session)
    if anew:
        ctx.drop_connection()
    if not ctx.ledger.try_lock("ask secondary", _SECONDARY_S + _LOCK_S):
        return "another one asks"
    try:
        client = ctx.secondary(ctx.progress.brick().epoch).client
        client.submit("ping").result(_SECONDARY_S)
        tell(ctx.place, client)
    except StaleFence:
        return "another epoch"
    except TimeoutError:
        return f"no answer within {_SECONDARY_S} s"
    except (SeamarkError, SecondaryError) as error:
        ctx.ledger.trouble(str(getattr(error, "code", "unreachable")), str(error))
        return f"not now: {error}"
    finally:
        ctx.ledger.unlock("ask secondary")
    ctx.ledger.sign(alive.SECONDARY)
    return "it answers"


@app.task(bind=True, name="scheduler.jobs.sweep", ignore_result=True)
def sweep(_task: Task[..., Any], session: str) -> str:
    """Submit again what has stopped moving."""
    return sweep_once(context(session))


@app.task(bind=True, name="scheduler.jobs.retry_failures", ignore_result=True)
def retry_failures(_task: Task[..., Any], session: str, at_once: bool = False) -> str:
    """Try again what failed and is due."""
    ctx = context(session)
    if not ctx.progress.failure_count() and not ctx.progress.skip_count():
        return "nothing failed"
    if (why := ctx.holding()) is not None:
        return why
    try:
        return retry(ctx, at_once=at_once)
    except (SeamarkError, SecondaryError) as error:
        return f"not now: {error}"


@app.task(bind=True, name="scheduler.jobs.resync", ignore_result=True)
def resync(_task: Task[..., Any], session: str) -> str:
    """Go on with what a person wants compared again."""
    ctx = context(session)
    if not pending(ctx.place) or ctx.resting() is not None or not ctx.ledger.try_lock("resync", _LOCK_S):
        return "nothing to do"
    try:
        return resync_pending(ctx)
    except (SeamarkError, SecondaryError) as error:
        return f"not now: {error}"
    finally:
        ctx.ledger.unlock("resync")


@app.task(bind=True, name="scheduler.jobs.verify_slice", ignore_result=True)
def verify_slice(_task: Task[..., Any], session: str) -> str:
    """Go on proving that a slice of the tree is on the secondary as it is here."""
    ctx = context(session)
    if ctx.holding() is not None or not ctx.ledger.try_lock("verify slice", _LOCK_S):
        return "not now"
    try:
        return nightly.go_on(ctx)
    except (SeamarkError, SecondaryError) as error:
        return f"not now: {error}"
    finally:
        ctx.ledger.unlock("verify slice")


@app.task(bind=True, name="scheduler.jobs.check_checkpoints", ignore_result=True)
def check_checkpoints(_task: Task[..., Any], session: str) -> str:
    """Ask for a checkpoint if one is due by itself, and look whether one is reached that nothing else noticed."""
    ctx = context(session)
    progress = ctx.progress
    checkpointing.ask_if_due(ctx.place, progress, ctx.session.checkpoint_every)
    if all(found.reached_ns is not None for found in progress.checkpoints()):
        return "none is waited for"
    progress.reach_checkpoints()
    return "looked"


@app.task(bind=True, name="scheduler.jobs.take_snapshot", ignore_result=True)
def take_snapshot(task: Task[..., Any], session: str) -> str:
    """Take a snapshot of the secondary for a checkpoint that is reached."""
    ctx = context(session)
    if (why := ctx.holding()) is not None:
        return why
    try:
        return snapshots.take_due(ctx, lambda: renew(task, ctx.broker))
    except StaleFence:
        return "another epoch"
    except (SeamarkError, SecondaryError) as error:
        if not isinstance(error, LinkRests):
            log.warning("%s: no snapshot: %s", session, error)
        return f"not now: {error}"


@app.task(bind=True, name="scheduler.jobs.hold_drill", ignore_result=True)
def hold_drill(task: Task[..., Any], session: str) -> str:
    """Hold a drill if one is due by itself."""
    ctx = context(session)
    if (why := ctx.holding()) is not None:
        return why
    try:
        return drilling.hold_if_due(ctx, lambda: renew(task, ctx.broker))
    except (SeamarkError, SecondaryError) as error:
        log.warning("%s: no drill: %s", session, error)
        return f"not now: {error}"


@app.task(bind=True, name="scheduler.jobs.start_over", ignore_result=True)
def start_over(_task: Task[..., Any], session: str, epoch: int, why: str) -> str:
    """Leave an epoch behind and begin again from the durable front."""
    says = begin_again(context(session), epoch, why)
    crawl_tick.apply_async(kwargs={"session": session}, queue=control_queue())
    return says


def _tick(ctx: Context) -> str:
    epoch = -1
    try:
        crawler = Crawler(ctx)
        epoch = crawler.epoch
        return crawler.tick()
    except (SeamarkError, SecondaryError) as error:
        if getattr(error, "code", "") == "stale-epoch":
            note_taken_over(ctx, epoch)
            return f"stale: {error}"
        ctx.ledger.trouble(str(getattr(error, "code", "unreachable")), str(error))
        if not isinstance(error, LinkRests):
            log.warning("%s: %s", ctx.session.name, error)
        return f"not now: {error}"


def beat_schedule(sessions: list[str]) -> dict[str, dict[str, Any]]:
    """What beat sends for these sessions. Each message expires before the next: a backlog never builds up."""
    jobs = [(job, control_queue()) for job in _PERIODIC]
    # These come before what waits in other queues (tasks/turns.py).
    jobs += [("answer", alive_queue(worker)) for worker in ("control", "data")]
    jobs += [("ask_secondary", alive_queue("control"))]
    return {
        f"{job} of {name}, {queue}": {
            "task": f"scheduler.jobs.{job}",
            "schedule": schedule(_EVERY_S),
            "kwargs": {"session": name},
            "options": {"queue": queue, "expires": _EVERY_S},
        }
        for name in sessions
        for job, queue in jobs
    }
