"""Taking over: a new epoch is durable here before anybody sees it, and ends every older one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from replication.errors import LockedError
from replication.volume.stime import marked_ns
from scheduler.preflight import claim_secondary, look_at_secondary

if TYPE_CHECKING:
    from collections.abc import Callable

    from tasks.context import Context

log = logging.getLogger("seamark.epoch")
# Clocks of nodes may differ by that much: what changed so long before another holder's mark is compared as well.
DOUBT_NS = 120 * 10**9
_CLAIMS = 10


def begin(ctx: Context, hello: dict[str, Any], turn: Callable[[], object] = lambda: None) -> int:
    """The epoch of a run that begins; ``hello``: what the secondary said to somebody who looks.

    Where another holder was at work since, nothing that this node knows of the secondary counts: it is taken over
    from that holder, and compared. ``turn`` is called meanwhile. Raises SeamarkError.
    """
    for _ in range(_CLAIMS):
        before, served = ctx.progress.brick().epoch, int(hello.get("epoch", 0))
        holder = hello.get("holder")
        others = served > before or holder not in (None, ctx.session.instance)
        if others:
            ctx.progress.superseded()
        epoch = ctx.progress.new_epoch(served + 1)
        if not others:
            break
        claimed = claim_secondary(ctx.place, ctx.session, epoch, served).meanwhile(turn)
        if "refused" not in claimed:
            mark = marked_ns(claimed.get("mark"))
            # Before a first crawl was complete no changelog was applied, and versions are what they say.
            ctx.progress.inherit(mark, max(1, mark - DOUBT_NS) if claimed.get("mark") else 0)
            log.info(
                "%s: taken over from %s, with epoch %d", ctx.session.name, holder or "another run", epoch
            )
            break
        hello = look_at_secondary(ctx.place, ctx.session).meanwhile(turn)
    else:
        raise LockedError(f"secondary {ctx.session.secondary}: another node keeps taking it over")
    ctx.ledger.begin_epoch(epoch)
    return epoch


def take_over(ctx: Context) -> int:
    """Begin a new epoch with an empty ledger; work goes on from the durable front. Returns the epoch."""
    epoch = ctx.progress.new_epoch(0)
    ctx.ledger.begin_epoch(epoch)
    return epoch


def start_over(ctx: Context, epoch: int, why: str) -> str:
    """Leave everything under way behind and begin again from the durable front, unless somebody did so."""
    if ctx.progress.brick().epoch != epoch:
        return "somebody else started over"
    new = take_over(ctx)
    log.warning("%s: starting over from the mark (epoch %d): %s", ctx.session.name, new, why)
    return f"epoch {new}: {why}"
