"""sync_by_stream, sync_by_rsync, sync_by_tar: content of the files of one data unit."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from replication.failures import Failure
from replication.transfer.item import FileItem, ItemResult, decode_items
from replication.transfer.stream import StreamSender
from replication.volume.since import changed_since
from tasks.app import app
from tasks.elsewhere import as_found, rest_of
from tasks.metadata import dress
from tasks.unit import DONE, Unit, working

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Task

    Sender = Callable[[Unit, list[FileItem]], list[ItemResult]]

log = logging.getLogger("seamark.tasks")
_MOVES, _MOVE_S = 5, 0.2  # how often, and how long, a rename under way is waited for
_LOOKS = 5  # a file that changes all the time has later records for all the later times
_UNKNOWN, _UNDRESSED = -1, -2  # in the place of tickets, see SecondaryClient.wanted
# Reported, not retried by itself: the whole unit is given back and tried again when there is room.
_WHOLE_UNIT = {"no-space", "read-only"}


@app.task(bind=True, name="tasks.data.sync_by_stream")
def sync_by_stream(task: Task[..., Any], session: str, epoch: int, batch: int, unit: str) -> str:
    """Send the files of one unit through the receiver that stays up."""
    return _sync(task, session, epoch, batch, unit, _stream)


@app.task(bind=True, name="tasks.data.sync_by_rsync")
def sync_by_rsync(task: Task[..., Any], session: str, epoch: int, batch: int, unit: str) -> str:
    """Send the files of one unit by rsync: what differs of them."""
    return _sync(task, session, epoch, batch, unit, _rsync)


@app.task(bind=True, name="tasks.data.sync_by_tar")
def sync_by_tar(task: Task[..., Any], session: str, epoch: int, batch: int, unit: str) -> str:
    """Send the files of one unit as a tar stream."""
    return _sync(task, session, epoch, batch, unit, _tar)


def _sync(task: Task[..., Any], session: str, epoch: int, batch: int, unit: str, send: Sender) -> str:
    with working(task, session, epoch, batch, unit) as work:
        packed = work.payload()
        if packed is None:
            return DONE
        asked = decode_items(packed)
        boot = work.ctx.secondary(epoch).boot_id
        items, results, here = _still_wanted(work, [item for item in asked if item.how != "metadata"])
        results += send(work, items) if items else []
        if work.ctx.at_home:
            results = _look_elsewhere(work, items, results, send)
            results = _look_again(work, items, results)
        stuck = next((r for r in results if r.status == "error" and r.code in _WHOLE_UNIT), None)
        if stuck is not None:
            work.ctx.ledger.trouble(stuck.code, stuck.message)
            return f"given back: {stuck.message}"
        end = _end_at_home if work.ctx.at_home else _end_elsewhere
        work.outcome = end(work, boot, asked, results, here)
    return work.outcome


def _end_at_home(
    work: Unit, boot: str, asked: list[FileItem], results: list[ItemResult], here: list[FileItem]
) -> str:
    """Settle a unit on the primary's node, where what fails is a failure."""
    paths = {item.gfid: os.fsdecode(item.path) for item in asked}
    failures = [
        Failure(step="data", gfid=r.gfid.hex(), path=paths[r.gfid], code=r.code, error=r.message)
        for r in results
        if r.status == "error"
    ]
    dressed = [item for item in asked if item.how == "metadata"]
    # Those of ``here`` came from another host, whose worker was killed before it said so.
    undressed = dress(work, [(item.gfid, item.path) for item in [*dressed, *here]])
    bad = {failure.key for failure in undressed}
    good = [f"data:{r.gfid.hex()}" for r in results if r.status != "error"]
    good += [f"{step}:{item.gfid.hex()}" for item in dressed for step in ("data", "metadata")]
    failing = work.ctx.progress.failing()
    resolved = {key: work.began_ns for key in good if key in failing and key not in bad}
    if not work.finish(boot=boot, failures=failures + undressed, resolved=resolved):
        return DONE
    work.say(failures + undressed)
    _say_sent(paths, results)
    errors = len(failures) + len(undressed)
    sent = [item for item in asked if item.how != "metadata"]
    amount = _count_in(work, sent, results, left=[], files=len(results) - len(failures), errors=errors)
    return f"{len(sent)} files, metadata of {len(dressed)}, {amount} bytes sent, {errors} failed"


def _say_sent(paths: dict[bytes, str], results: list[ItemResult]) -> None:
    if log.isEnabledFor(logging.DEBUG):
        for r in results:
            path = paths[r.gfid].encode(errors="backslashreplace").decode()
            log.debug("%s (%s): %s, %d bytes sent", path, r.gfid.hex(), r.status, r.bytes_sent)


def _end_elsewhere(
    work: Unit, boot: str, asked: list[FileItem], results: list[ItemResult], here: list[FileItem]
) -> str:
    """Settle a unit on another host: what it could not do, and the metadata, is for the primary's node."""
    rest = rest_of(work, asked, results, here)
    _say_sent({item.gfid: os.fsdecode(item.path) for item in asked}, results)
    if not work.finish(boot=boot, found=as_found(work, rest)):
        return DONE
    left = [item for item in rest if item.how != "metadata"]
    done = len(asked) - len(left)
    amount = _count_in(work, asked, results, files=done, left=left)
    return (
        f"{done} of {len(asked)} files, {amount} bytes sent; {len(left)} files are left to the primary's node"
    )


def _count_in(
    work: Unit, items: list[FileItem], results: list[ItemResult], left: list[FileItem], **counts: int
) -> int:
    """For the counters that people see, without what is ``left`` to others; the bytes that were sent."""
    amount = sum(r.bytes_sent for r in results)
    size = sum(item.size for item in items) - sum(item.size for item in left)
    gone = sum(r.status == "vanished" for r in results) - len(left)
    work.ctx.ledger.count(bytes_sent=amount, bytes=size, vanished=max(0, gone), **counts)
    return amount


def _still_wanted(
    work: Unit, items: list[FileItem]
) -> tuple[list[FileItem], list[ItemResult], list[FileItem]]:
    """What has to be sent still, results of what has not, and what lacks nothing but its metadata.

    A file that changes all the time is asked for by many units; whichever comes first sends what it is by
    now, on behalf of all of them.
    """
    if not items:
        return [], [], []
    wanted = work.ctx.secondary(work.epoch).client.wanted(item.gfid for item in items)
    todo, done, here = [], [], []
    for item, ticket in zip(items, wanted, strict=True):
        if ticket > 0:
            todo.append(item._replace(ticket=max(ticket, item.ticket)))
        else:
            done.append(ItemResult(item.gfid, "vanished" if ticket == _UNKNOWN else "ok"))
            here += [item] if ticket == _UNDRESSED else []
    return todo, done, here


def _look_elsewhere(
    work: Unit, items: list[FileItem], results: list[ItemResult], send: Sender
) -> list[ItemResult]:
    """Files no longer where they were observed: try the names that the secondary has for them by now.

    A rename is applied soon after it is recorded: that is waited for, a moment. What is still wanted then, and
    still not to be found, is a failure: it holds the mark, and is tried again. Not so where the volume says that it is
    nowhere: then its end is recorded, and will be applied.
    """
    client = work.ctx.secondary(work.epoch).client
    for turn in range(_MOVES):
        lost = {r.gfid for r in results if r.status == "vanished"}
        missing = [item for item in items if item.gfid in lost]
        wanted = (
            dict(zip(missing, client.wanted(item.gfid for item in missing), strict=True)) if missing else {}
        )
        missing = [item for item in missing if wanted[item] > 0]
        if not missing:
            return results
        known = work.ctx.names_now(work.epoch, (item.gfid for item in missing))
        missing = [item for item in missing if known.get(item.gfid) != []]
        if not missing:
            return results
        moved = [
            # By other names first; but it may be back at this one.
            item._replace(path=sorted(paths, key=item.path.__eq__)[turn % len(paths)], ticket=wanted[item])
            for item in missing
            if (paths := known.get(item.gfid))
        ]
        again = {r.gfid: r for r in send(work, moved)} if moved else {}
        results = [again.get(r.gfid, r) for r in results]
        work.alive()
        time.sleep(_MOVE_S)
    still = {item.gfid for item in missing}
    return [_moved(r) if r.gfid in still and r.status == "vanished" else r for r in results]


def _moved(result: ItemResult) -> ItemResult:
    return ItemResult(result.gfid, "error", "moved", "it was renamed while it was to be read")


def _look_again(work: Unit, items: list[FileItem], results: list[ItemResult]) -> list[ItemResult]:
    """What changed between being read and being placed: bring its metadata up to date.

    A metadata step of a later segment may have run meanwhile, and what was read before it was placed
    after it. (Content has the number of the look that wanted it for that; and a change of it is recorded. So it is with
    attributes that change without a ctime; but what is compared again has no number.) What cannot be looked at is a failure.
    """
    items_of = {item.gfid: item for item in items}
    sent = {r.gfid: r._replace(xattrs=None) for r in results if r.ctime_ns}
    for _ in range(_LOOKS):
        moved = changed_since(
            work.ctx.volume,
            [(items_of[gfid].path, items_of[gfid].ino, r.ctime_ns, r.xattrs) for gfid, r in sent.items()],
        )
        again = [item for item in items if item.path in moved and item.gfid in sent]
        if not again:
            break
        work.alive()
        again = [item._replace(ino=0, ctime_ns=0, ticket=0) for item in again]
        found = _sender(work).recheck(again)
        sent = {r.gfid: r for r in found if r.ctime_ns}
        bad = {r.gfid: r for r in found if r.status == "error"}
        results = [bad.get(r.gfid, r) for r in results]
    return results


def _sender(work: Unit, *, rsync_next: bool = False) -> StreamSender:
    connection = work.ctx.secondary(work.epoch)

    def progress(_files: int, _size: int) -> None:
        work.alive()

    return StreamSender(
        work.ctx.volume,
        connection.client,
        compress=connection.compress,
        progress=progress,
        rsync_next=rsync_next,
    )


def _stream(work: Unit, items: list[FileItem]) -> list[ItemResult]:
    return _sender(work).send(items)


def _rsync(work: Unit, items: list[FileItem]) -> list[ItemResult]:
    """What differs of files that are there already: by blocks where that finds it, else by the program."""
    from replication.transfer.rsync import sync_by_rsync as send

    method = work.ctx.sync_method
    if method == "rsync":
        return _by_program(work, items, send, bwlimit=_kib(work.ctx.bandwidth.share()))
    blocks = _sender(work, rsync_next=method == "auto")
    results = blocks.send([item._replace(how="data") for item in items])
    return results + (
        _by_program(work, blocks.left, send, bwlimit=_kib(work.ctx.bandwidth.share())) if blocks.left else []
    )


def _tar(work: Unit, items: list[FileItem]) -> list[ItemResult]:
    from replication.transfer.tar import sync_by_tar as send

    return _by_program(work, items, send, pace=work.ctx.pace)


def _kib(share: int | None) -> int | None:
    return None if share is None else max(1, share >> 10)


def _by_program(
    work: Unit, items: list[FileItem], send: Callable[..., list[ItemResult]], **limits: Any
) -> list[ItemResult]:
    connection = work.ctx.secondary(work.epoch)
    return send(
        items, work.ctx.volume, connection.client, connection.target, connection.options,
        compress=connection.compress, alive=work.alive, **limits,
    )  # fmt: skip
