"""The canvas: how units of the ledger become Celery signatures, and how a chord extends itself.

A unit's id says what it is: ``E:<segment>:<part>`` (entries and metadata), ``C:<n>`` (a piece of a
hybrid crawl), ``D:<engine>:<n>`` (data), ``R:<engine>:<n>`` (data tried again). The message carries names and
numbers only; what a unit is to do stands in the ledger.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from celery import Signature, chain, signature

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Task

ENGINES = ("stream", "rsync", "tar")
VERIFY = "verify"  # comparisons of the two ends go where data goes


def name_queues(session: str, instance: str) -> None:
    """Have this process, and those that it starts, use the queues of a session. Names are only unique in a state directory."""
    ours = f"{session}.{instance}"
    os.environ.setdefault("SEAMARK_FLEET", ours)
    os.environ["SEAMARK_NODE"] = f"{os.uname().nodename}.{ours}"


def node() -> str:
    """The name of this node: part of its control queue's name."""
    return os.environ.get("SEAMARK_NODE") or socket.gethostname()


def control_queue() -> str:
    """The queue that only this node consumes: it holds the changelogs."""
    return f"control.{node()}"


def data_queue(engine: str) -> str:
    """The queue of an engine's data tasks: shared by the workers of one fleet (SEAMARK_FLEET)."""
    fleet = os.environ.get("SEAMARK_FLEET", "")
    return f"{engine}.{fleet}" if fleet else engine


def alive_queue(worker: str) -> str:
    """The queue that one worker of this node alone consumes: what comes by it asks whether it is alive."""
    return f"alive.{worker}.{node()}"


def _sign(task: str, queue: str, says: str, **kwargs: Any) -> Signature:
    made: Signature = signature(
        task, kwargs=kwargs, immutable=True, queue=queue, kwargsrepr=says, argsrepr=""
    )
    return made


def unit_signature(session: str, epoch: int, batch: int, unit: str, says: str = "") -> Signature:
    """What runs one unit. ``says`` is shown to people in Flower. Raises ValueError on an unknown unit."""
    kind, _, rest = unit.partition(":")
    where = {"session": session, "epoch": epoch, "batch": batch, "unit": unit}
    text = f"{session} batch {batch} {unit} {says}".rstrip()
    if kind == "E":
        made: Signature = chain(
            _sign("tasks.entry.sync_entries", control_queue(), text, **where),
            _sign("tasks.metadata.sync_metadata", control_queue(), text, **where),
        )
        return made
    if kind == "C":
        return _sign("tasks.crawl.crawl_subtree", control_queue(), text, **where)
    engine = rest.partition(":")[0]
    if kind in ("D", "R") and engine in ENGINES:
        return _sign(f"tasks.data.sync_by_{engine}", data_queue(engine), text, **where)
    raise ValueError(unit)


def mark_signature(session: str, epoch: int, batch: int) -> Signature:
    return _sign(
        "tasks.mark.update_stime", control_queue(), f"{session} batch {batch}",
        session=session, epoch=epoch, batch=batch,
    )  # fmt: skip


def publish_signature(session: str, epoch: int) -> Signature:
    """What writes the mark to both roots."""
    return _sign("tasks.mark.publish_stime", control_queue(), session, session=session, epoch=epoch)


def tick_signature(session: str) -> Signature:
    """The crawl tick: looks what there is to do next."""
    made = _sign("scheduler.jobs.crawl_tick", control_queue(), session, session=session)
    return made.set(expires=30)


def retry_signature(session: str) -> Signature:
    """What tries again everything that failed, whatever its back-off says."""
    return _sign("scheduler.jobs.retry_failures", control_queue(), session, session=session, at_once=True)


def start_over_signature(session: str, epoch: int, why: str) -> Signature:
    """What leaves an epoch behind and begins again from the durable front."""
    return _sign(
        "scheduler.jobs.start_over",
        control_queue(),
        f"{session}: {why}",
        session=session,
        epoch=epoch,
        why=why,
    )


def extend(task: Task[..., Any], members: Iterable[Signature]) -> None:
    """Add members to the chord that the running task belongs to; outside of one just send them.

    A task that the sweeper submitted again is in no chord: the ledger alone then says when all is done.
    """
    for member in members:
        if task.request.chord:
            task.add_to_chord(member)
        else:
            member.apply_async()
