"""Files that the secondary lacks, and that no unit of the ledger is going to send: whoever found them was killed, or the ledger lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.transfer.item import decode_items
from tasks.canvas import DATA_KINDS

if TYPE_CHECKING:
    from tasks.context import Context

_PAGE = 2000
_MOST = 20_000


def orphans(ctx: Context, epoch: int) -> tuple[list[tuple[bytes, bytes]], bool]:
    """(gfid, path there) of those that did not fail for a reason, and whether there may be more of them than 20,000.

    Not while entries are looked at. Raises StaleFence.
    """
    client, ledger = ctx.secondary(epoch).client, ctx.ledger
    lacking: dict[bytes, bytes] = {}
    after = None
    failing = {key.partition(":")[2] for key in ctx.progress.failing()}
    while len(lacking) < _MOST:
        page, after = client.dirty(after, _PAGE)
        lacking |= {gfid: path for gfid, path in page if gfid.hex() not in failing}
        if after is None:
            break
    # After that: a unit that ends meanwhile has sent it, and it is found to be right.
    for number in range(ledger.forgotten() + 1, ledger.standing(epoch).opened + 1):
        batch = ledger.batch(number) if lacking else None
        for unit in batch.units if batch is not None else ():
            payload = ledger.payload(number, unit) if unit[:1] in DATA_KINDS else None
            for item in decode_items(payload) if payload is not None else ():
                lacking.pop(item.gfid, None)
    return list(lacking.items()), after is not None
