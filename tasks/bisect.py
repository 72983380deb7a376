"""A data unit that cannot be done, for no reason that is known: halved, until the one guilty file is alone.

Its task raised what nobody foresaw, or its process ended each time while it was at it. The rest of the unit is not sent
again: the secondary says of each file whether it is still wanted. What is left in the end is one file on the failure
list, which holds the mark, and is tried again by itself, alone.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from replication.failures import UNEXPECTED, Failure
from replication.transfer.item import decode_items, encode_items
from tasks.canvas import DATA_KINDS

if TYPE_CHECKING:
    from tasks.unit import Unit

log = logging.getLogger("seamark.tasks")
MOST_STARTS = 3  # of one unit that came to no end: somebody may have killed its process, and again


def is_data(unit: str) -> bool:
    return unit[:1] in DATA_KINDS


def bisect(work: Unit, why: str) -> str | None:
    """Put two halves in the place of the unit, or its one file on the failure list; None when it is no such unit.

    Raises what the ledger and the secondary raise; then the unit stays as it is.
    """
    if not is_data(work.name):
        return None
    packed, work.token = work.ctx.ledger.payload_and_token(work.batch, work.name)
    if packed is None:
        return None
    items = decode_items(packed)
    # What of it was placed is not durable yet, if the secondary restarts now.
    boot = work.ctx.secondary(work.epoch).boot_id
    if len(items) > 1:
        middle = len(items) // 2
        halves = [encode_items(half) for half in (items[:middle], items[middle:])]
        work.finish(boot=boot, found={f"{work.name}.{n}": half for n, half in enumerate(halves)})
        return f"halved, {len(items)} files: {why}"
    (item,) = items
    step = "metadata" if item.how == "metadata" else "data"
    failure = Failure(
        step=step, gfid=item.gfid.hex(), path=os.fsdecode(item.path), code=UNEXPECTED, error=why
    )
    work.say([failure])
    work.finish(boot=boot, failures=[failure])
    work.ctx.ledger.count(errors=1)
    return f"failed: {why}"
