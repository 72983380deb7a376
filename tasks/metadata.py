"""sync_metadata: attributes of what the entries step named; then data and the next segment are enqueued."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from replication.attributes import attribute_rows
from replication.failures import Failure
from replication.frontier import decode_dirs
from replication.transfer.item import decode_items, encode_items
from replication.transfer.units import cut
from tasks.app import app
from tasks.canvas import extend, tick_signature
from tasks.unit import DONE, Unit, working

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Task

    from replication.transfer.item import FileItem
    from tasks.context import Context


@app.task(bind=True, name="tasks.metadata.sync_metadata")
def sync_metadata(task: Task[..., Any], session: str, epoch: int, batch: int, unit: str) -> str:
    """Metadata of one part of a segment; settles it, and extends the chord by what comes next."""
    with working(task, session, epoch, batch, unit) as work:
        payload = work.payload()
        text = work.ctx.ledger.take_found(epoch, batch, work.found_by)
        if payload is None or text is None:
            return DONE
        found = json.loads(text)
        meta = decode_dirs(found["meta"])
        connection = work.ctx.secondary(epoch)
        if connection.boot_id != found["boot"]:
            work.start_over("the secondary's host restarted between entries and their metadata")
            return "the secondary restarted: starting over"
        failures = send_metadata(work, meta)
        if failures:
            work.say(failures)
            work.ctx.progress.record(failures, [], work.since_ns())
        resolved = found["resolved"] + _resolved(work.ctx, meta, failures)
        items = decode_items(bytes.fromhex(found["needs"])) if found["needs"] else []
        units, says = data_units(items, work.ctx, f"{unit}:")
        if found["more"]:
            following = f"E:{found['more']['segment']}:{found['more']['part']}"
            units[following] = json.dumps(found["more"]).encode()
        if not work.finish(boot=connection.boot_id, found=units, says=says, resolved=resolved):
            return DONE
        work.ctx.ledger.drop_found(epoch, batch, work.found_by)
        work.ctx.ledger.count(files_found=len(items), bytes_found=sum(item.size for item in items))
        if not found["more"]:
            _next_segment(work, int(unit.split(":")[1]))
        work.outcome = f"{len(meta)} objects, {len(failures)} failed; {len(items)} files to send"
    return work.outcome


def _resolved(ctx: Context, meta: list[tuple[bytes, bytes]], failures: list[Failure]) -> list[str]:
    """Keys of failures of metadata that are none any more."""
    failing = ctx.progress.failing()
    sent = {f"metadata:{gfid.hex()}" for gfid, _ in meta} if failing else set()
    return sorted((sent & failing) - {failure.key for failure in failures})


def send_metadata(work: Unit, objects: list[tuple[bytes, bytes]]) -> list[Failure]:
    """Send owner, mode, times and xattrs of objects (gfid, path) in this unit's order; what failed."""
    todo = json.loads(work.payload() or b"{}") if work.name.startswith("E:") else {}
    return send_metadata_now(work.ctx, work.epoch, objects, work.alive, position=todo.get("segment"))


def send_metadata_now(
    ctx: Context,
    epoch: int,
    objects: list[tuple[bytes, bytes]],
    alive: Callable[[], None] = lambda: None,
    *,
    position: int | None = None,
) -> list[Failure]:
    """The same, for a caller that is no unit of entries."""
    failures: list[Failure] = []
    futures = []
    client = ctx.secondary(epoch).client
    paths = {gfid.hex(): path for gfid, path in objects}
    for rows, bad in attribute_rows(ctx.volume, objects):
        alive()
        failures += bad
        if rows:
            futures.append(client.submit("metadata", items=rows, position=position))
    for future in futures:
        for gfid, code, message in future.result().header["errors"]:
            if code != "not-found":
                path = paths[gfid].decode("utf-8", "surrogateescape")
                failures.append(Failure(step="metadata", gfid=gfid, path=path, code=code, error=message))
    return failures


def data_units(
    items: list[FileItem], ctx: Context, after: str
) -> tuple[dict[str, str | bytes], dict[str, str]]:
    """Units for these files, and for each what a person reads of it. ``after`` makes their ids unique."""
    units: dict[str, str | bytes] = {}
    says = {}
    for number, (engine, members) in enumerate(cut(items, ctx.sync_method, ctx.session.rsync_from)):
        name = f"D:{engine}:{after}{number}"
        units[name] = encode_items(members)
        first = members[0].path.decode("utf-8", "backslashreplace")
        says[name] = f"{len(members)} files, {sum(m.size for m in members)} bytes, {first[-60:]} …"
    return units, says


def _next_segment(work: Unit, segment: int) -> None:
    """Extend the chord by the next segment of the batch; after its last one, look for the next batch."""
    batch = work.ctx.ledger.batch(work.batch)
    waiting = sorted(
        int(unit.split(":")[1]) for unit in (batch.units if batch else []) if unit.startswith("E:")
    )
    following = [number for number in waiting if number > segment]
    if following:
        extend(work.task, [work.signature(f"E:{following[0]}:0")])
    else:
        tick_signature(work.ctx.session.name).apply_async()
