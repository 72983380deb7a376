"""What the secondary lacks, and no unit of the ledger is going to send: whoever found it was killed, or the ledger lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.transfer.item import decode_items
from tasks.canvas import DATA_KINDS
from tasks.deletes import gone_upto

if TYPE_CHECKING:
    from replication.transfer.item import How
    from tasks.context import Context

_PAGE = 2000
_MOST = 20_000

Lacking = list[tuple[bytes, bytes]]  # (gfid, path there)


def lacking(ctx: Context, epoch: int, *, undressed: bool, most: int = _MOST) -> tuple[Lacking, bool]:
    """Files whose content the secondary lacks (``undressed``: what lacks its metadata), and whether there may be more of them.

    Not what failed, or is skipped, in that very step: it is tried again by itself, or not at all.
    """
    step = "metadata:" if undressed else "data:"
    failing = {key.removeprefix(step) for key in ctx.progress.failing() if key.startswith(step)}
    client, upto = ctx.secondary(epoch).client, gone_upto(ctx)
    found: Lacking = []
    after = None
    while len(found) < most:
        page, after = client.dirty(after, min(_PAGE, most), undressed=undressed, upto=upto)
        found += [each for each in page if each[0].hex() not in failing]
        if after is None:
            return found, False
    return found, True


def orphans(ctx: Context, epoch: int) -> tuple[Lacking, Lacking, bool]:
    """Of both of these those that no unit is going to send, and whether there may be more of them than 20,000.

    Not while entries are looked at. Raises StaleFence.
    """
    content, more = lacking(ctx, epoch, undressed=False)
    bare, more_bare = lacking(ctx, epoch, undressed=True)
    # After that: a unit that ends meanwhile has sent it, and it is found to be right.
    asked = _asked_for(ctx, epoch) if content or bare else set()
    of_content = {gfid for gfid, how in asked if how != "metadata"}
    of_any = {gfid for gfid, _ in asked}
    left = [each for each in content if each[0] not in of_content]
    return left, [each for each in bare if each[0] not in of_any], more or more_bare


def _asked_for(ctx: Context, epoch: int) -> set[tuple[bytes, How]]:
    """What units are still to send, and how."""
    ledger = ctx.ledger
    found: set[tuple[bytes, How]] = set()
    for number in range(ledger.forgotten() + 1, ledger.standing(epoch).opened + 1):
        batch = ledger.batch(number)
        for unit in batch.units if batch is not None else ():
            payload = ledger.payload(number, unit) if unit[:1] in DATA_KINDS else None
            found |= (
                {(item.gfid, item.how) for item in decode_items(payload)} if payload is not None else set()
            )
    return found
