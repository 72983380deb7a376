"""Deletions that are held (secondary/held.py): the rule that a session's settings make, and what becomes of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from replication.deletes import Held
from replication.pace import LIMBO_MARGIN_NS

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.session import Session
    from tasks.context import Context

log = logging.getLogger("seamark.deletes")


def rule_of_deletes(session: Session, since_ns: Callable[[], int]) -> dict[str, Any] | None:
    """What a request says of deletions; None: each is carried out. ``since_ns``: from when on what it tells happened."""
    if session.ignore_deletes:
        return {"ignore": True}
    if not session.max_delete:
        return None
    return {
        "most": session.max_delete.count, "percent": session.max_delete.percent,
        "window_s": float(session.delete_window), "since": since_ns(), "allowed_ns": session.deletes_allowed_ns,
    }  # fmt: skip


def gone_upto(ctx: Context) -> int:
    """What was not seen up to this time has no other name: it is gone, or held as what is."""
    return ctx.progress.brick().front_ns - LIMBO_MARGIN_NS


def settle_deletes(ctx: Context, epoch: int) -> int:
    """What was gone before the front may go now, unless a person is to be asked first. How much is left in limbo."""
    brick = ctx.progress.brick()
    rule = rule_of_deletes(ctx.session, lambda: brick.stime_ns + 1)
    client = ctx.secondary(epoch).client
    answer = client.call("purge", upto=gone_upto(ctx), deletes=rule).header
    before = ctx.progress.held()
    held = Held.of(answer)
    ctx.progress.hold(held)
    if held.question and not before.question:
        log.warning("%s: deletions are held: %s", ctx.session.name, held.question)
    elif before.question and not held.question:
        log.info("%s: no deletions are held any more", ctx.session.name)
    return int(answer["left"])
