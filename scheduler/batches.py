"""Opening a batch: into the ledger first, then enqueued as a chord."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import chord

from tasks.canvas import mark_signature, unit_signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tasks.context import Context
    from tasks.ledger import Standing


def open_batch(
    ctx: Context,
    epoch: int,
    standing: Standing,
    manifest: dict[str, Any],
    units: Mapping[str, str | bytes],
    says: Mapping[str, str],
) -> str:
    """Write the next batch into the ledger, then send what can start of it.

    The chord begins with what is known now and extends itself. ``says``: what a person reads of each
    unit. Raises StaleFence, OutOfOrder.
    """
    number = standing.opened + 1
    name = ctx.session.name
    ctx.ledger.open(epoch, number, manifest, units)
    body = mark_signature(name, epoch, number)
    # Entries of segments are added one after another, each by the one before it.
    first = list(units)[:1] if manifest["kind"] == "changelog" else list(units)
    if not first:
        body.apply_async()
        return f"batch {number}: nothing to do"
    chord(
        [unit_signature(name, epoch, number, unit, says.get(unit, "")) for unit in first], body
    ).apply_async()
    return f"batch {number}: {len(units)} units"
