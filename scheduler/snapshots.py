"""A snapshot of the secondary for each checkpoint that is reached, from a job of beat.

What is known stands in the progress database: a job that is killed leaves nothing behind on the secondary, and the next one
takes the snapshot.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from replication import snapshots
from replication.locks import held_by_us
from replication.remote.answers import SecondaryError
from replication.volume.stime import mark_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tasks.context import Context

_AGAIN_S = 60.0  # after a try that failed
# What has nothing to do with snapshots: the next job tries again, and nobody is told.
_PASSING = frozenset({"stale-epoch", "busy", "protocol"})


def take_due(ctx: Context, turn: Callable[[], object]) -> str:
    """Take one if one is due. ``turn`` is called meanwhile. Raises SeamarkError, SecondaryError."""
    progress = ctx.progress
    if not ctx.session.checkpoint_snapshot:
        if progress.look(snapshots.known) is not None:
            progress.change(snapshots.end)
        return "none is wanted"
    if progress.look(snapshots.known) is None:
        progress.change(snapshots.begin)
    plan, due = progress.look(snapshots.known), progress.look(snapshots.due)
    if plan is None or due is None or (plan.error and abs(time.time_ns() - plan.tried_ns) < _AGAIN_S * 1e9):
        return "none is due"
    with held_by_us(ctx.place.path / "snapshot.lock") as ours:
        if not ours:
            return "another job is at it"
        return _take(ctx, due.id, turn)


def _take(ctx: Context, checkpoint: int, turn: Callable[[], object]) -> str:
    brick = ctx.progress.brick()
    try:
        client = ctx.secondary(brick.epoch).client
        answer = client.finish(
            "snapshot",
            turn,
            mark=mark_text(brick),
            keep=str(ctx.session.snapshot_keep),
            checkpoint=checkpoint,
        )
    except SecondaryError as error:
        if error.code not in _PASSING:
            ctx.progress.change(partial(snapshots.failed, error=error.reason))
        raise
    record = answer["snapshot"]
    ctx.progress.change(lambda db: snapshots.taken(db, checkpoint, record))
    return f"snapshot {record['name']} of checkpoint {checkpoint}, {len(answer['removed'])} removed"
