"""Whether a time has come that settings name by a cron expression, for jobs that are looked at again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from cronsim import CronSim

from replication.windows import zone

if TYPE_CHECKING:
    import sqlite3

    from tasks.context import Context


def is_due(
    ctx: Context,
    at: str,
    tried_ns: Callable[[sqlite3.Connection], int | None],
    try_at: Callable[[sqlite3.Connection, int], None],
) -> bool:
    """Whether a time of ``at`` has come since the job was begun last, which ``tried_ns`` reads and ``try_at`` notes.

    The first time is one still to come. One that was ended by a kill is due again.
    """
    if not at or not ctx.progress.brick().marked:
        return False
    tried = ctx.progress.look(tried_ns)
    now = datetime.now(zone(ctx.session.schedule.timezone))
    if tried is None or tried > time.time_ns():
        ctx.progress.change(lambda db: try_at(db, time.time_ns()))
        return False
    return next(CronSim(at, datetime.fromtimestamp(tried / 1e9, now.tzinfo))) <= now
