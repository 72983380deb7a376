"""The sweeper: submits again what has stopped moving, and asks for marks that nobody asked for.

A message can be lost, a chord can stick, a worker can die between two steps (docs/architecture.md
says how each was seen). The ledger knows what is not done; this looks whether anybody is doing it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tasks.canvas import control_queue, data_queues, home_queue, mark_signature, queue_of, unit_signature
from tasks.ledger import StaleFence
from tasks.queues import lengths

if TYPE_CHECKING:
    from tasks.context import Context

log = logging.getLogger("seamark.sweep")
STUCK_S = 10.0  # nothing of a batch moved for so long, and nobody gives a sign of life
_LOST_S = 120.0  # however full the queue is: its message is not in it any more
_AT_ONCE = 200


def sweep(ctx: Context) -> str:
    """One round over the open batches of a session. Two at once are harmless."""
    if (why := ctx.holding()) is not None:
        return why  # units were given back, and would be again
    if (why := ctx.link.rests()) is not None:
        return why  # and so would whatever needs the secondary
    epoch = ctx.progress.brick().epoch
    ledger = ctx.ledger
    try:
        standing = ledger.standing(epoch)
    except StaleFence:
        return "another epoch, or no ledger"
    forgotten = ledger.forgotten()
    if standing.front > forgotten:
        mark_signature(ctx.session.name, epoch, standing.front).apply_async()
    alive = {unit for unit, age in ledger.claims().items() if age < STUCK_S}
    waiting: dict[str, int] = {}
    sent = 0
    for number in range(standing.front + 1, standing.opened + 1):
        batch = ledger.batch(number)
        if batch is None or batch.idle_s < STUCK_S:
            continue
        waiting = waiting or lengths((control_queue(), home_queue(), *data_queues()))
        for unit in _startable(batch.units):
            if (
                unit in alive
                or sent >= _AT_ONCE
                or not ledger.once_in(int(STUCK_S), f"sweep:{number}:{unit}")
            ):
                continue
            signature = unit_signature(ctx.session.name, epoch, number, unit, "(submitted again)")
            if not waiting[queue_of(ctx.session.name, unit)] or batch.idle_s > _LOST_S:
                signature.apply_async()
                sent += 1
    if sent:
        log.info("%s: %d units had stopped moving and were submitted again", ctx.session.name, sent)
    return f"{sent} submitted again"


def _startable(units: list[str]) -> list[str]:
    """All units but entries that have to wait for those before them."""
    entries = [unit for unit in units if unit.startswith("E:")]
    entries.sort(key=lambda unit: [int(part) for part in unit.split(":")[1:]])
    return entries[:1] + [unit for unit in units if not unit.startswith("E:")]
