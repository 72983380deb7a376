"""update_stime: make completed batches durable on the secondary, then move the front and the mark.

The chord's body, and just as well the sweeper or a task outside of any chord: asked never, once or
twice, the mark is the same. Nothing is trusted but the ledger and the secondary.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.failures import Failure
from replication.pace import scan_interval
from replication.remote.answers import SecondaryError
from tasks.app import app
from tasks.canvas import tick_signature
from tasks.deletes import settle_deletes
from tasks.ledger import StaleFence
from tasks.unit import Unit, working

if TYPE_CHECKING:
    from celery import Task

    from tasks.ledger import OpenBatch

log = logging.getLogger("seamark.mark")
_RETAIN_EVERY_S = 10


@app.task(bind=True, name="tasks.mark.update_stime")
def update_stime(task: Task[..., Any], session: str, epoch: int, batch: int) -> str:
    """Move the front over every batch that is complete. ``batch`` is the one that asks, for people."""
    with working(task, session, epoch, batch, "") as work:
        ledger = work.ctx.ledger
        front = ledger.standing(epoch).front
        done = [found for n in range(ledger.forgotten() + 1, front + 1) if (found := ledger.batch(n))]
        if not done:
            return "nothing to do"
        reports = {b.number: ledger.reports(b.number) for b in done}
        limbo = ledger.limbo()
        # A crawl that goes on after a restart may have its last unit behind it, and nothing of that was synced yet.
        nothing_missing = False
        if any(b.units_done or b.manifest["kind"] == "hybrid" for b in done):
            boot, limbo, nothing_missing = _sync(work)
            if any(b.rebooted or (b.boot and b.boot != boot) for b in done):
                # What was applied before the restart may be lost: do it all again under a new epoch.
                work.start_over("the secondary's host restarted before a batch was durable")
                return "the secondary restarted: starting over"
        ledger.standing(epoch)  # raises StaleFence: what was read above may be of a ledger that is gone
        ended = [_finish(work, each, *reports[each.number], nothing_missing=nothing_missing) for each in done]
        brick = work.ctx.progress.brick()
        if limbo:
            limbo = settle_deletes(work.ctx, epoch)
        ledger.set_limbo(limbo)
        if ledger.once_in(_RETAIN_EVERY_S, "retain"):
            _retain(work, brick.front)
        ledger.forget(epoch, done[-1].number)
        work.ctx.publish_mark(epoch, now=any(ended))
        tick_signature(session).apply_async()
        work.outcome = f"front {brick.front}, batches up to {done[-1].number} durable"
    return work.outcome


@app.task(bind=True, name="tasks.mark.publish_stime")
def publish_stime(task: Task[..., Any], session: str, epoch: int) -> str:
    """Write the mark to both roots now: a run that is about to end wants it there."""
    with working(task, session, epoch, 0, "") as work:
        work.ctx.publish_mark(epoch, now=True)
        work.outcome = "the mark is on both roots"
    return work.outcome


def _retain(work: Unit, front: int) -> None:
    """Segments up to the front are consumed here: the agent, their only writer, deletes what all consumers have."""
    with contextlib.suppress(AgentRefused, AgentUnreachable):
        agent_call(work.ctx.place.changelog, "retain", upto=front, consumer=work.ctx.session.name)


def _sync(work: Unit) -> tuple[str, int, bool]:
    """Make everything durable on the secondary; the boot in which that was done, how much is in limbo, and whether no
    file lacks anything: a crawl that swept the tree then needs no batch for the rest.
    """
    client = work.ctx.secondary(work.epoch).client
    durable = client.submit("sync")
    missing = [
        client.submit("dirty", limit=1, undressed=each) for each in (False, True)
    ]  # all for one round trip
    try:
        answer = durable.result().header
    except SecondaryError as error:
        if error.code == "sync-failed":
            # Reported once by the kernel, and never again: what was written since the last time may be lost.
            work.ctx.progress.expect_full_crawl()
            work.start_over(str(error))
            raise StaleFence from None
        raise
    work.ctx.progress.synced(answer["gen"], held=answer["held"], held_since_ns=answer["since"])
    held = answer["held"] and not work.ctx.session.ignore_deletes
    nothing_missing = all(each.result().header["next"] is None for each in missing)
    return str(answer["boot_id"]), int(answer["limbo"]) + held, nothing_missing


def _finish(
    work: Unit,
    batch: OpenBatch,
    bad: list[dict[str, Any]],
    good: list[tuple[str, int]],
    *,
    nothing_missing: bool,
) -> bool:
    """Move the front over one batch, which is durable. True when a hybrid crawl ended with it."""
    progress, manifest = work.ctx.progress, batch.manifest
    since = manifest["start_ns"] if manifest["kind"] == "changelog" else progress.brick().stime_ns + 1
    progress.take(work.epoch, batch.number, [Failure(**row) for row in bad], good, since)
    if manifest["kind"] == "changelog":
        progress.advance(work.epoch, manifest["last"], manifest["end_ns"])
    elif manifest["kind"] == "hybrid" and (manifest["final"] or nothing_missing):
        _end_crawl(work, manifest)
        return True
    elif manifest["kind"] == "hybrid":
        progress.crawl_swept(manifest["crawl"])
    return False


def _end_crawl(work: Unit, manifest: dict[str, Any]) -> None:
    progress = work.ctx.progress
    work.ctx.secondary(work.epoch).client.end_crawl(manifest["crawl"], rebuilt=True)
    by = work.ctx.place.detector()
    progress.end_crawl(work.epoch, manifest["crawl"], recorded=by != "scan")
    if work.ctx.session.adopt:  # once: what stands in its place from now on is not what a person meant
        work.ctx.place.change_state(adopt=False)
    took = time.time() - manifest["start_ns"] / 1e9
    progress.scanned(by, time.time_ns() + int(scan_interval(took, recording=by != "scan") * 1e9))
