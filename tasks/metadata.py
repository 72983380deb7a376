"""sync_metadata: attributes of what the entries step named; then data and the next segment are enqueued."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.attributes import CTIME, GFID, INO, XATTRS, attribute_rows
from replication.failures import Failure
from replication.frontier import decode_dirs
from replication.transfer.item import FileItem, decode_items, encode_items
from replication.transfer.units import cut
from replication.volume.directory import RESERVED
from replication.volume.since import changed_since
from tasks.app import app
from tasks.canvas import extend, tick_signature
from tasks.unit import DONE, Unit, working

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Task

    from tasks.context import Context


_LOOKS, _LOOK_S = 6, 0.2  # how often, and how long, a rename under way is waited for


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
        dressed = send_metadata(work, meta)
        failures = dressed.failures
        if failures:
            work.say(failures)
            work.ctx.progress.record(failures, [], work.since_ns())
        resolved = found["resolved"] | dict.fromkeys(_resolved(work.ctx, meta, dressed), work.began_ns)
        items = decode_items(bytes.fromhex(found["needs"])) if found["needs"] else []
        units, says = data_units(items, work.ctx, f"{unit}:")
        units |= undressed(dressed.missed, f"{unit}:")
        if found["more"]:
            following = f"E:{found['more']['segment']}:{found['more']['part']}"
            units[following] = json.dumps(found["more"]).encode()
        if not work.finish(boot=connection.boot_id, found=units, says=says, resolved=resolved):
            return DONE
        work.ctx.ledger.drop_found(epoch, batch, work.found_by)
        work.ctx.ledger.forget_starts(unit)
        work.ctx.ledger.count(files_found=len(items), bytes_found=sum(item.size for item in items))
        if not found["more"]:
            _next_segment(work, int(unit.split(":")[1]))
        work.outcome = f"{len(meta)} objects, {len(failures)} failed; {len(items)} files to send"
    return work.outcome


def _resolved(ctx: Context, meta: list[tuple[bytes, bytes]], dressed: Dressed) -> list[str]:
    """Keys of failures of metadata that are none any more."""
    failing = ctx.progress.failing()
    sent = {f"metadata:{gfid.hex()}" for gfid, _ in meta} if failing else set()
    missed = {f"metadata:{gfid.hex()}" for gfid, _ in dressed.missed}
    return sorted((sent & failing) - missed - {failure.key for failure in dressed.failures})


class Dressed(NamedTuple):
    """What became of the attributes of some objects, which are (gfid, path).

    ``missed``: not at their paths, though the secondary has them. ``sent``: (gfid, path, inode number, ctime in ns, attributes).
    """

    failures: list[Failure]
    missed: list[tuple[bytes, bytes]]
    sent: list[tuple[bytes, bytes, int, int, dict[str, str]]]


def send_metadata(work: Unit, objects: list[tuple[bytes, bytes]]) -> Dressed:
    """Send owner, mode, times and xattrs of objects (gfid, path) in this unit's order."""
    todo = json.loads(work.payload() or b"{}") if work.name.startswith("E:") else {}
    return send_metadata_now(work.ctx, work.epoch, objects, work.alive, position=todo.get("segment"))


def send_metadata_now(
    ctx: Context,
    epoch: int,
    objects: list[tuple[bytes, bytes]],
    alive: Callable[[], None] = lambda: None,
    *,
    position: int | None = None,
) -> Dressed:
    """The same, for a caller that is no unit of entries."""
    failures: list[Failure] = []
    gone: list[tuple[bytes, bytes]] = []
    sent: list[tuple[bytes, bytes, int, int, dict[str, str]]] = []
    futures = []
    client = ctx.secondary(epoch).client
    paths = {gfid.hex(): path for gfid, path in objects}
    for found in attribute_rows(ctx.volume, objects):
        alive()
        failures += found.bad
        gone += found.gone
        if found.rows:
            futures.append(client.submit("metadata", items=found.rows, position=position))
            sent += [
                (bytes.fromhex(row[GFID]), paths[row[GFID]], row[INO], row[CTIME], row[XATTRS])
                for row in found.rows
            ]
    for future in futures:
        for gfid, code, message in future.result().header["errors"]:
            if code != "not-found":
                path = paths[gfid].decode("utf-8", "surrogateescape")
                failures.append(Failure(step="metadata", gfid=gfid, path=path, code=code, error=message))
    known = client.names(gfid for gfid, _ in gone) if gone else {}
    return Dressed(failures, [each for each in gone if known.get(each[0])], sent)


def dress(work: Unit, objects: list[tuple[bytes, bytes]]) -> list[Failure]:
    """The same, in no order: what moved is looked for by the names that the secondary has for it by now; what failed.

    Something newer may have been sent between the look and its arrival: it is looked at again.
    """
    failures: list[Failure] = []
    for turn in range(_LOOKS):
        found = send_metadata_now(work.ctx, work.epoch, objects, work.alive)
        failures += found.failures
        # (A ctime of 0 may hide another change; that it is looked at twice is enough.)
        settled = [row[1:] for row in found.sent if row[3] or not turn]
        changed = changed_since(work.ctx.volume, settled)
        objects = [(gfid, path) for gfid, path, *_ in found.sent if path in changed]
        if not objects and not found.missed:
            return failures
        if found.missed and turn:
            time.sleep(_LOOK_S)
        names = work.ctx.names_now(work.epoch, (gfid for gfid, _ in found.missed))
        objects += [(g, name_of(paths, path)) for g, path in found.missed if (paths := names.get(g))]
    return failures + as_moved(found.missed)


def name_of(paths: list[bytes], before: bytes) -> bytes:
    """Where something is to be looked for that the secondary has at ``paths``; what it is about to remove: where it was ``before``."""
    return next((path for path in paths if not path.startswith(RESERVED + b"/")), before)


def as_moved(missed: list[tuple[bytes, bytes]], *, step: str = "metadata") -> list[Failure]:
    """Failures for objects (gfid, path) whose attributes, or content ("data"), were not where they were looked for."""
    return [
        Failure(
            step=step,
            gfid=gfid.hex(),
            path=os.fsdecode(path),
            code="moved",
            error="it was renamed while it was to be read",
        )
        for gfid, path in missed
    ]


def undressed(missed: list[tuple[bytes, bytes]], after: str) -> dict[str, str | bytes]:
    """A unit for what was not where it was to be: what comes later knows where it is. ``after`` makes its id unique."""
    items = [FileItem(gfid, path, "metadata", 0, 0, 0, 1) for gfid, path in missed]
    return {f"N:stream:{after}m": encode_items(items)} if items else {}


def data_units(
    items: list[FileItem], ctx: Context, after: str
) -> tuple[dict[str, str | bytes], dict[str, str]]:
    """Units for these files, and for each what a person reads of it. ``after`` makes their ids unique.

    What was seen by several of its names is sent once, as it was seen last.
    """
    units: dict[str, str | bytes] = {}
    says = {}
    for number, (engine, members) in enumerate(
        cut(list({item.gfid: item for item in items}.values()), ctx.sync_method, ctx.session.rsync_from)
    ):
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
