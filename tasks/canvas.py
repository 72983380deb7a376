"""The canvas: how units of the ledger become Celery signatures, and how a chord extends itself.

A unit's id says what it is: ``E:<segment>:<part>`` (entries and metadata), ``C:<n>`` (a piece of a
hybrid crawl), ``D:<engine>:<n>`` (data), ``R:<engine>:<n>`` (data tried again), ``N:<engine>:<n>`` (what a worker on
another host left to the primary's own node). The message carries names and numbers only; what a unit is to do stands
in the ledger.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from celery import Signature, chain, signature

from replication.session import node_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Task

    from replication.session import Session

ENGINES = ("stream", "rsync", "tar")
VERIFY = "verify"  # comparisons of the two ends go where data goes


BULK = "bulk"
DATA_KINDS = ("D", "R", "N")
_homes: dict[str, str] = {}


def name_queues(session: Session) -> None:
    """Have this process, and those that it starts, use the queues of a session."""
    ours = f"{session.name}.{session.instance}"  # names are only unique in a state directory
    os.environ["SEAMARK_FLEET"] = ours
    host = os.environ["SEAMARK_HOST"] = node_name()
    os.environ["SEAMARK_NODE"] = f"{host}.{ours}"


def at_home_on(session: str, node: str) -> None:
    """On another host than the primary's: the node that this session's control tasks are sent to."""
    _homes[session] = node


def node(session: str = "") -> str:
    """The name of the primary's node: part of its queues' names."""
    return _homes.get(session) or os.environ.get("SEAMARK_NODE") or socket.gethostname()


def control_queue(session: str = "") -> str:
    """The queue that only the primary's node consumes: it holds the changelogs."""
    return f"control.{node(session)}"


def home_queue(session: str = "") -> str:
    """The queue of data tasks that only the primary's own node can do."""
    return f"data.{node(session)}"


def data_queue(engine: str, fleet: str | None = None) -> str:
    """The queue of an engine's data tasks: shared by the workers of one fleet (SEAMARK_FLEET)."""
    fleet = os.environ.get("SEAMARK_FLEET", "") if fleet is None else fleet
    return f"{engine}.{fleet}" if fleet else engine


def data_queues(fleet: str | None = None) -> list[str]:
    """All queues of data tasks that any host may do."""
    return [data_queue(engine, fleet) for engine in (*ENGINES, BULK)]


def queue_of(session: str, unit: str) -> str:
    """Where a unit waits. What a huge directory brings waits beside the rest, not before it."""
    kind, engine, *rest = unit.split(":")
    if kind == "N":
        return home_queue(session)
    if kind not in ("D", "R"):
        return control_queue(session)
    # D:<engine>:E:<segment>:<part>:<n>: the first part holds the first thousands of names of a segment.
    huge = kind == "D" and rest[:1] == ["E"] and len(rest) > 2 and rest[2] != "0"
    return data_queue(BULK if huge else engine)


def alive_queue(worker: str) -> str:
    """The queue that one worker of this node alone consumes: what comes by it asks whether it is alive."""
    return f"alive.{worker}.{node()}"


def _sign(task: str, queue: str, says: str, **kwargs: Any) -> Signature:
    # What Flower shows, and finds by each of it: kwargs:session=photos kwargs:batch=3
    about: dict[str, Any] = {key: kwargs[key] for key in ("session", "batch", "unit") if key in kwargs}
    about |= {"about": says} if says else {}
    made: Signature = signature(
        task, kwargs=kwargs, immutable=True, queue=queue, kwargsrepr=repr(about), argsrepr=""
    )
    return made


def unit_signature(session: str, epoch: int, batch: int, unit: str, says: str = "") -> Signature:
    """What runs one unit. ``says`` is shown to people in Flower. Raises ValueError on an unknown unit."""
    kind, engine, *_ = [*unit.split(":"), ""]
    where = {"session": session, "epoch": epoch, "batch": batch, "unit": unit}
    if kind == "E":
        made: Signature = chain(
            _sign("tasks.entry.sync_entries", control_queue(session), says, **where),
            _sign("tasks.metadata.sync_metadata", control_queue(session), says, **where),
        )
        return made
    if kind == "C":
        return _sign("tasks.crawl.crawl_subtree", control_queue(session), says, **where)
    if kind in DATA_KINDS and engine in ENGINES:
        return _sign(f"tasks.data.sync_by_{engine}", queue_of(session, unit), says, **where)
    raise ValueError(unit)


def mark_signature(session: str, epoch: int, batch: int) -> Signature:
    return _sign(
        "tasks.mark.update_stime", control_queue(session), "", session=session, epoch=epoch, batch=batch
    )


def publish_signature(session: str, epoch: int) -> Signature:
    """What writes the mark to both roots."""
    return _sign("tasks.mark.publish_stime", control_queue(session), "", session=session, epoch=epoch)


def tick_signature(session: str) -> Signature:
    """The crawl tick: looks what there is to do next."""
    made = _sign("scheduler.jobs.crawl_tick", control_queue(session), "", session=session)
    return made.set(expires=30)


def retry_signature(session: str, *, at_once: bool = True) -> Signature:
    """What tries again what failed: everything, whatever its back-off says; else what is due."""
    queue = control_queue(session)
    made = _sign("scheduler.jobs.retry_failures", queue, "", session=session, at_once=at_once)
    return made.set(expires=30)


def greet_signature(session: str) -> Signature:
    """What has the primary's node look which secondary it is that answers."""
    made = _sign("scheduler.jobs.ask_secondary", control_queue(session), "", session=session, anew=True)
    return made.set(expires=30)


def start_over_signature(session: str, epoch: int, why: str) -> Signature:
    """What leaves an epoch behind and begins again from the durable front."""
    return _sign(
        "scheduler.jobs.start_over",
        control_queue(session),
        why,
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
