"""One slice each night, so that everything is proved every so many nights: a few steps at a time, from a job of beat.

What is known stands in a file: whatever is killed or restarted meanwhile, the next job goes on. A night in which
nothing ran is made up for when something does.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from typing import TYPE_CHECKING

import redis

from replication import proofs
from replication.errors import TemporaryError
from replication.verify.selection import slice_range
from scheduler.due import is_due
from scheduler.verify.outcome import outcome
from scheduler.verify.proof import keep
from scheduler.verify.settling import Settling
from scheduler.verify.store import Store
from scheduler.verify.verification import Asked, Verification
from scheduler.verify.workers import Fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.context import Context


def go_on(ctx: Context) -> str:
    """Begin a slice if one is due, or go on with the one under way. Raises SeamarkError, redis.RedisError."""
    path = ctx.place.path / "verify" / "slice.sqlite"
    if not path.exists():
        if not is_due(ctx, ctx.session.verify.at, proofs.tried_ns, proofs.try_at):
            return "not due"
        _begin(ctx, path)
    try:
        return _step(ctx, path)
    except sqlite3.DatabaseError as error:
        _remove(path)  # damaged, after a power cut: the slice is begun again when the next one is due
        return f"begun in vain: {error}"


def _begin(ctx: Context, path: Path) -> None:
    ctx.progress.change(lambda db: proofs.try_at(db, time.time_ns()))
    settings = ctx.session.verify
    number = ctx.progress.look(lambda db: proofs.next_slice(db, settings.slices))
    low, high = slice_range(number, settings.slices)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    store = Store(path)
    asked = Asked(low=low, high=high - 1, repair=settings.repair, slice=number, slices=settings.slices)
    Verification.begin(store, asked)
    store.put(run=uuid.uuid4().hex[:8])
    store.close()


def _step(ctx: Context, path: Path) -> str:
    store = Store(path)
    settling = Settling(ctx.place, running=True)
    try:
        if store.get("asked") is None:
            raise sqlite3.DatabaseError("nothing was asked for")
        workers = Fleet(ctx.session.name, ctx.ledger, store.get("run"), settling)
        # Half of the hands: what is to be sent comes first.
        verification = Verification(store, workers, settling, max(1, ctx.session.jobs // 2))
        try:
            verification.step()
        except (redis.RedisError, TemporaryError) as error:
            return f"not now: {error}"
        found, asked = outcome(store), verification.asked
        if verification.done:
            keep(ctx.progress, asked, found)
            workers.close()
    finally:
        settling.close()
        store.close()
    if found.phase == "done":
        _remove(path)
        return f"slice {asked.slice} of {asked.slices}: {found.names} names equal, {found.different} differ"
    return f"slice {asked.slice} of {asked.slices}, {found.phase}: {found.names} names equal"


def _remove(path: Path) -> None:
    for each in path.parent.glob(path.name + "*"):
        each.unlink(missing_ok=True)
