"""Taking over: a new epoch is durable here before anybody sees it, and ends every older one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.context import Context

log = logging.getLogger("seamark.epoch")


def take_over(ctx: Context, at_least: int = 0) -> int:
    """Begin a new epoch with an empty ledger; work goes on from the durable front. Returns the epoch."""
    epoch = ctx.progress.new_epoch(at_least)
    ctx.ledger.begin_epoch(epoch)
    return epoch


def start_over(ctx: Context, epoch: int, why: str) -> str:
    """Leave everything under way behind and begin again from the durable front, unless somebody did so."""
    if ctx.progress.brick().epoch != epoch:
        return "somebody else started over"
    new = take_over(ctx)
    log.warning("%s: starting over from the mark (epoch %d): %s", ctx.session.name, new, why)
    return f"epoch {new}: {why}"
