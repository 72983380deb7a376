"""compare: one unit of a comparison of the two ends. mend: have what differs looked at again, and sent.

Whoever compares (scheduler/verification.py) puts what a unit is to do on a *board* in Redis, and takes from there what
came of it; the message names the unit only. What the board loses is put there again.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from itertools import groupby
from typing import TYPE_CHECKING, Any

from celery import Signature, group, signature

from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.errors import SeamarkError
from replication.remote.errors import RemoteError
from replication.verify.compare import Difference
from replication.verify.unit import run_unit
from replication.verify.walk import ROOT_NAME
from replication.volume.identity import ROOT_GFID
from tasks import alive, trace
from tasks.app import app
from tasks.canvas import VERIFY, control_queue, data_queue
from tasks.context import Context, context
from tasks.ledger import StaleFence
from tasks.metadata import send_metadata_now
from tasks.visibility import renew

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Task

    from tasks.ledger import Ledger

log = logging.getLogger("seamark.verify")
_KEPT_S = 86_400
_NEVER_S = 1e9


class Board:
    """Units of one comparison that are under way, in Redis: expendable, as everything there."""

    def __init__(self, ledger: Ledger, run: str) -> None:
        self._redis = ledger.redis
        self._todo, self._done, self._alive = (
            f"{ledger.prefix}verify:{run}:{k}" for k in ("todo", "done", "alive")
        )

    def put(self, units: dict[str, dict[str, Any]]) -> None:
        """What some units are to do."""
        pipe = self._redis.pipeline()
        for unit, payload in units.items():
            pipe.hset(self._todo, unit, zlib.compress(json.dumps(payload).encode(), 1))
            pipe.hset(self._alive, unit, int(time.time() * 1000))
        for key in (self._todo, self._done, self._alive):
            pipe.expire(key, _KEPT_S)
        pipe.execute()

    def payload(self, unit: str) -> dict[str, Any] | None:
        """What a unit is to do; None: it is done, or nobody waits for it any more."""
        raw: bytes | None = self._redis.hget(self._todo, unit)  # type: ignore[assignment]
        return None if raw is None else json.loads(zlib.decompress(raw))

    def sign(self, unit: str) -> None:
        """A sign of life of whoever does it."""
        self._redis.hset(self._alive, unit, int(time.time() * 1000))

    def finish(self, unit: str, outcome: dict[str, Any]) -> None:
        """What came of a unit."""
        pipe = self._redis.pipeline()
        pipe.hset(self._done, unit, zlib.compress(json.dumps(outcome).encode(), 1))
        pipe.hdel(self._todo, unit)
        pipe.hdel(self._alive, unit)
        pipe.expire(self._done, _KEPT_S)
        pipe.execute()

    def take(self) -> dict[str, dict[str, Any]]:
        """Outcomes that are there; each is given once."""
        found: dict[bytes, bytes] = self._redis.hgetall(self._done)  # type: ignore[assignment]
        if found:
            self._redis.hdel(self._done, *found)
        return {unit.decode(): json.loads(zlib.decompress(raw)) for unit, raw in found.items()}

    def ages(self, units: Iterable[str]) -> dict[str, float]:
        """Seconds since the last sign of life of each; very many of what is not on the board."""
        now = time.time() * 1000
        found: dict[bytes, bytes] = self._redis.hgetall(self._alive)  # type: ignore[assignment]
        there: set[bytes] = set(self._redis.hkeys(self._todo))  # type: ignore[arg-type]
        return {
            unit: (now - int(found.get(unit.encode(), 0))) / 1000 if unit.encode() in there else _NEVER_S
            for unit in units
        }

    def clear(self) -> None:
        """Nobody waits any more: what is still under way finds nothing to do."""
        self._redis.delete(self._todo, self._done, self._alive)


def send(session: str, epoch: int, run: str, units: dict[str, dict[str, Any]]) -> None:
    """Send units as a group: looks to all workers that see the volume, mends to this node."""
    group(
        [_signature(session, epoch, run, unit, payload["kind"]) for unit, payload in units.items()]
    ).apply_async()


def _signature(session: str, epoch: int, run: str, unit: str, kind: str) -> Signature:
    mends = kind == "mend"
    made: Signature = signature(
        "tasks.verify.mend" if mends else "tasks.verify.compare", immutable=True, argsrepr="",
        kwargs={"session": session, "epoch": epoch, "run": run, "unit": unit},
        queue=control_queue() if mends else data_queue(VERIFY), kwargsrepr=f"{session} {kind} {run}:{unit}",
    )  # fmt: skip
    return made


@app.task(bind=True, name="tasks.verify.compare", ignore_result=True)
def compare(task: Task[..., Any], session: str, epoch: int, run: str, unit: str) -> str:
    """One unit of a comparison: digests of both ends. Changes nothing."""
    return _work(task, session, epoch, run, unit, _compare)


@app.task(bind=True, name="tasks.verify.mend", ignore_result=True)
def mend(task: Task[..., Any], session: str, epoch: int, run: str, unit: str) -> str:
    """Some names that differ: what is foreign is displaced, and the names are looked at as if they had changed."""
    return _work(task, session, epoch, run, unit, _mend)


def _work(task: Task[..., Any], session: str, epoch: int, run: str, unit: str, do: Any) -> str:
    ctx = context(session)
    board = Board(ctx.ledger, run)
    payload = board.payload(unit)
    if payload is None:
        return "done already, or not wanted any more"
    signed = 0.0

    def sign() -> None:
        nonlocal signed
        if time.monotonic() - signed >= 1:
            signed = time.monotonic()
            board.sign(unit)
            renew(task, ctx.broker)
            alive.show(ctx.ledger)

    sign()
    ctx.alive = sign
    with trace.at(f"{session}/verify-{run}/{unit}"):
        try:
            outcome = do(ctx, epoch, payload, sign)
        except StaleFence:
            outcome = {"trouble": ["stale-epoch", "another epoch is at work"]}
        except (SeamarkError, RemoteError, OSError) as error:
            outcome = {"trouble": [str(getattr(error, "code", "unreachable")), str(error)]}
            log.warning("%s", error)
    board.finish(unit, outcome)
    return _says(outcome)


def _says(outcome: dict[str, Any]) -> str:
    if "trouble" in outcome:
        return f"given back: {outcome['trouble'][1]}"
    totals = outcome.get("totals", {})
    return f"{totals.get('names', 0)} names equal, {len(outcome.get('suspects', ()))} to be looked at again"


def _compare(ctx: Context, epoch: int, payload: dict[str, Any], sign: Any) -> dict[str, Any]:
    client = ctx.secondary(epoch).client
    return run_unit(payload, ctx.volume.mounted, client, ctx.filters, ctx.powers, sign)


def _mend(ctx: Context, epoch: int, payload: dict[str, Any], _sign: Any) -> dict[str, Any]:
    """``items``: [path, kind of the difference, whether it is a regular file]."""
    items = [(path, Difference(kind), regular) for path, kind, regular in payload["items"]]
    root = os.fsdecode(ROOT_NAME)
    told = [
        [path, not regular and kind in (Difference.CONTENT, Difference.TYPE)]
        for path, kind, regular in items
        if path != root
    ]
    answer = ctx.secondary(epoch).client.call("mend", items=told).header
    if any(path == root for path, _, _ in items):
        send_metadata_now(ctx, epoch, [(ROOT_GFID, b"")])
    if ctx.place.detector() != "scan":  # where nothing is recorded, the next scan finds that digests differ
        _have_looked_at(ctx, [path for path, _ in told])
    return {"displaced": answer["displaced"]}


def _have_looked_at(ctx: Context, paths: list[str]) -> None:
    """Have the names recorded as ones that may have changed. Raises AgentUnreachable as SeamarkError."""
    split = sorted(os.path.split(path) for path in paths)
    for directory, names in groupby(split, key=lambda pair: pair[0]):
        try:
            agent_call(
                ctx.place.changelog, "look", dir=directory, names=[name for _, name in names], kinds="EM"
            )
        except AgentUnreachable as error:
            raise SeamarkError(f"the agent does not answer: {error}") from None
        except AgentRefused:
            continue  # its directory is gone here: that was recorded, and tells
