"""Trying again what failed, with back-off, beside everything else that goes on."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from stat import S_ISDIR
from typing import TYPE_CHECKING

from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.failures import UNEXPECTED, let_go
from replication.transfer.item import FileItem, encode_items
from replication.transfer.units import cut
from replication.volume.handle import open_beneath
from scheduler.batches import open_batch
from tasks.deletes import gone_upto
from tasks.ledger import OutOfOrder, StaleFence
from tasks.metadata import name_of, undressed

if TYPE_CHECKING:
    from collections.abc import Collection

    from replication.failures import Failure
    from replication.transfer.item import How
    from replication.volume.directory import DirectoryVolume
    from tasks.context import Context

_AT_ONCE = 1000
_SKIPS_EVERY_S = 60
_COMPARE_EVERY_S = 3600  # however many failures there are whose place is not known
_ASTRAY = 8  # tries after which something is where no record will say


def retry_failures(ctx: Context, *, at_once: bool = False) -> str:
    """Enqueue what is due of the failure list; ``at_once``: whatever its back-off says."""
    due = ctx.progress.due(_AT_ONCE, ctx.session.retry_longest, at_once=at_once)
    data = [failure for failure in due if failure.step == "data" and failure.gfid]
    data += [failure for failure in due if _is_undressed(failure)]
    looks = [
        failure
        for failure in due
        if failure.step != "data" and failure.path is not None and not _is_undressed(failure)
    ]
    try:
        if ctx.ledger.once_in(_SKIPS_EVERY_S, "skips"):
            _end_skips(ctx)
        sent = _send_again(ctx, data) if data else 0
    except (StaleFence, OutOfOrder):
        sent = 0  # the crawler opened a batch at the same moment: the next round takes them
    try:
        names, astray = _look_again(ctx, looks)
    except StaleFence:
        names, astray = 0, False
    astray = astray or any(failure.code == "moved" and failure.tries >= _ASTRAY for failure in due)
    if astray and ctx.ledger.once_in(_COMPARE_EVERY_S, "astray"):
        ctx.progress.scan_now()
    return f"{sent} files, {names} names"


def _is_undressed(failure: Failure) -> bool:
    """Whether something lacks only its attributes. (A look at its name need not ask for them: they may change, and no ctime.)"""
    return failure.step == "metadata" and failure.gfid is not None


def _send_again(ctx: Context, failures: list[Failure]) -> int:
    """A batch of data units for these. Their names are asked of the secondary: they may have moved."""
    epoch = ctx.progress.brick().epoch
    client = ctx.secondary(epoch).client
    gfids = [bytes.fromhex(failure.gfid or "") for failure in failures]
    known = client.names(gfids)
    there = client.whereabouts(gfids, upto=gone_upto(ctx))
    items = []
    alone = set()
    came, gone = [], []
    missed = []
    for failure, gfid, wanted in zip(failures, gfids, client.wanted(gfids), strict=True):
        paths = known.get(gfid, [])
        path = name_of(paths, os.fsencode(failure.path or ""))
        if _is_undressed(failure) and paths and gfid in there:
            missed.append((gfid, path))
        elif gfid not in there or _is_undressed(failure):
            gone.append(failure.key)  # nothing there is called by any name any more
        elif wanted == 0:
            came.append(failure.key)
        elif paths:
            # "compare" sends nothing that is right.
            items.append(wanted_at(ctx.volume, gfid, path, "compare"))
            if failure.code == UNEXPECTED:
                alone.add(gfid)
        elif ctx.names_now(epoch, [gfid]).get(gfid) == []:
            gone.append(failure.key)  # without a name there, and nowhere on the primary, says that
    if came:
        ctx.progress.record([], came)
    if gone:
        ctx.progress.change(partial(let_go, gone=gone))
    send_again(ctx, epoch, items, alone, missed)
    return len(items) + len(missed)


def _end_skips(ctx: Context) -> None:
    """What was skipped and is wanted no more: it came by itself, or is gone. Nothing else would notice that."""
    skipped = [skip for skip in ctx.progress.skips() if skip.step == "data" and skip.gfid][:_AT_ONCE]
    if not skipped:
        return
    client = ctx.secondary(ctx.progress.brick().epoch).client
    wanted = client.wanted(bytes.fromhex(skip.gfid or "") for skip in skipped)
    ctx.progress.record([], [s.key for s, ticket in zip(skipped, wanted, strict=True) if ticket <= 0])


def send_again(
    ctx: Context,
    epoch: int,
    items: list[FileItem],
    alone: Collection[bytes] = (),
    missed: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """A batch of its own for these files, with a unit for each that goes ``alone``.

    ``missed``: objects (gfid, path) that lack nothing but their attributes. Raises StaleFence, OutOfOrder.
    """
    method, from_bytes = ctx.sync_method, ctx.session.rsync_from
    cuts = list(cut([item for item in items if item.gfid not in alone], method, from_bytes))
    for item in items:
        if item.gfid in alone:
            cuts += cut([item], method, from_bytes)
    units: dict[str, str | bytes] = {
        f"R:{engine}:{time.time_ns():x}.{n}": encode_items(members)
        for n, (engine, members) in enumerate(cuts)
    }
    units |= undressed(missed or [], f"{time.time_ns():x}.")
    if units:
        now = time.time_ns()
        manifest = {"kind": "retry", "start_ns": now, "end_ns": now}
        open_batch(ctx, epoch, ctx.ledger.standing(epoch), manifest, units, {})


def wanted_at(volume: DirectoryVolume, gfid: bytes, path: bytes, how: How = "data") -> FileItem:
    """The file at ``path``; where that is another one, or none, an item whose result says so."""
    directory, name = os.path.split(path)
    with contextlib.suppress(OSError):
        fd = open_beneath(volume.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
        try:
            found, stat = volume.identify(fd, name)
        finally:
            os.close(fd)
        if found == gfid:
            return FileItem(gfid, path, how, stat.ino, stat.ctime_ns, stat.size, stat.nlink)
    return FileItem(gfid, path, "compare", 0, 0, 0, 1)


def _look_again(ctx: Context, looks: list[Failure]) -> tuple[int, bool]:
    """Names and attributes go through the changelog, so that they stay in order; in scan mode each scan looks.

    How many there were, and whether some are not where they were. Raises StaleFence.
    """
    if not looks or ctx.place.detector() == "scan":
        return 0, False
    astray = False
    for path in _places(ctx, looks):
        directory, name = os.path.split(path)
        # D of a directory has it listed again; of a file it would have all of it read.
        kinds = "EM" if _is_no_directory(os.path.join(ctx.session.tree, path)) else "EMD"
        try:
            agent_call(ctx.place.changelog, "look", dir=directory, names=[name], kinds=kinds)
        except AgentRefused:
            astray = (
                True  # its directory has another name, or is gone: only a comparison of the tree finds it
            )
        except AgentUnreachable:
            break
    return len(looks), astray


def _places(ctx: Context, looks: list[Failure]) -> list[str]:
    """Where to look again: what is of a directory, where the secondary has that by now."""
    directories = {
        failure.of: bytes.fromhex(failure.of.partition("//")[0]) for failure in looks if failure.of
    }
    brick = ctx.progress.brick()
    client = ctx.secondary(brick.epoch).client
    where = client.whereabouts(directories.values(), upto=gone_upto(ctx)) if directories else {}
    paths, gone = [], []
    for failure in looks:
        at = where.get(directories[failure.of]) if failure.of else None
        if not failure.of:
            paths.append(failure.path or "")
        elif at is None:
            gone.append(failure.key)
        elif at.path is not None:  # without a name: it comes with a record, or to an end
            paths.append(os.path.join(os.fsdecode(at.path), failure.of.partition("//")[2]).rstrip("/"))
    if gone:
        ctx.progress.change(partial(let_go, gone=gone))
    return paths


def _is_no_directory(path: str) -> bool:
    """False also where that cannot be told."""
    try:
        return not S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False
