"""sync_entries: observe what a changelog segment says has changed, and tell the secondary."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from replication import failures, unsettled
from replication.changelog.control import agent_call
from replication.changelog.record import Kind, SegmentDamaged
from replication.changelog.store import SegmentDropped
from replication.changelog.together import Together
from replication.failures import within
from replication.frontier import decode_dirs, encode_dirs
from replication.observation import Change
from replication.observer import Observer
from replication.transfer.item import encode_items
from replication.volume.directory import VanishedError
from replication.volume.identity import ROOT_GFID
from tasks.app import app
from tasks.carry import carrying, counts
from tasks.metadata import as_moved
from tasks.unit import DONE, Unit, working
from tasks.whereabouts import NotFoundError, believed_at, open_parent, where_now

if TYPE_CHECKING:
    from collections.abc import Collection

    from celery import Task

    from replication.findings import Findings
    from replication.volume.directory import DirectoryVolume

# Names looked at in one part of a segment: bounds a task's time and memory, and lets data flow early.
PART_NAMES = 4000
_PART_S = 2.0  # and so long at most, when there is content that waits for this part to end
_TRIES = 5
_CAME = Kind.E | Kind.M | Kind.D  # of a name: what it stands for came from outside, among others
_PART_MOST_S = 5.0  # and so long when all of it goes along: between two parts the far side has nothing to do


@app.task(bind=True, name="tasks.entry.sync_entries")
def sync_entries(task: Task[..., Any], session: str, epoch: int, batch: int, unit: str) -> str:
    """Entries of one part of a segment. What it finds is left in the ledger for sync_metadata."""
    with working(task, session, epoch, batch, unit) as work:
        raw = work.payload()
        if raw is None or work.ctx.ledger.take_found(epoch, batch, work.found_by) is not None:
            return DONE
        todo = json.loads(raw)
        boot = work.ctx.secondary(epoch).boot_id
        repeated = work.ctx.ledger.started(unit) > 1
        segment = Together(work.ctx.store.read_records, todo.get("segments") or [todo["segment"]])
        try:
            findings, more = _observe_part(work, todo, segment)
        except SegmentDamaged as error:
            _give_up_segment(work, segment.number, error)
            return str(error)
        except SegmentDropped as error:
            work.start_over(f"{error}; a hybrid crawl covers it")
            return str(error)
        if findings.found_again:  # first: what goes wrong in them is as old as they are
            work.ctx.progress.change(lambda db: unsettled.seen_at(db, findings.found_again))
        if findings.left:
            work.ctx.progress.change(lambda db: failures.left(db, findings.left))
        if findings.failures:
            work.say(findings.failures)
            work.ctx.progress.record(findings.failures, [], _since_ns(work, segment))
        if findings.missed or findings.strayed:
            since_ns = _since_ns(work, segment)
            work.ctx.progress.change(
                lambda db: unsettled.miss(db, findings.missed, since_ns, strayed=findings.strayed)
            )
        if repeated:
            # Whoever was at it, and did not end, may have told of something, and alone knew what was to be listed and sent of it.
            rows = work.ctx.progress.look(unsettled.rows)
            since_ns = min([work.since_ns(), *(row.since_ns for row in rows)])
            work.ctx.progress.change(lambda db: unsettled.doubt(db, since_ns))
        items = encode_items(findings.needs).hex() if findings.needs else ""
        meta = encode_dirs(findings.meta)
        resolved = dict.fromkeys(findings.resolved, work.began_ns)
        text = json.dumps({"needs": items, "meta": meta, "more": more, "resolved": resolved, "boot": boot})
        work.ctx.ledger.put_found(epoch, batch, work.found_by, text)
        work.ctx.ledger.count(
            scanned=findings.names, **counts(findings, found=False),
            entries=sum(findings.counts.values()) + findings.files + len(findings.needs),
        )  # fmt: skip
        done = ", ".join(f"{count} {what}" for what, count in findings.counts.items() if count)
        work.outcome = (
            f"{findings.names} names, {done or 'none changed'}, {findings.files} files went along, "
            f"{len(findings.needs)} need data"
        )
    return work.outcome


def _since_ns(work: Unit, segment: Together) -> int:
    paths = {hint.path for hint in segment.dirs.values()}
    return work.ctx.progress.look(lambda db: unsettled.oldest_of(db, paths, work.since_ns()))


def _observe_part(
    work: Unit, todo: dict[str, Any], segment: Together
) -> tuple[Findings, dict[str, Any] | None]:
    """Look at this part; also what the next part has to do, None when there is none."""
    ctx = work.ctx
    observer = Observer(
        ctx.volume, ctx.secondary(work.epoch).client, position=todo["segment"], after=todo["after"],
        failing=ctx.progress.failing(), not_before=ctx.progress.brick().front_ns + 1, **carrying(work),
    )  # fmt: skip
    observer.missed_before = ctx.progress.look(unsettled.directories)
    queue = dict(decode_dirs(todo["dirs"]))
    observer.findings.empty = {gfid for gfid, _ in decode_dirs(todo.get("empty", "[]"))}
    began = time.monotonic()
    at = todo["at"]
    if at is not None:
        at = _look_at_records(work, observer, segment, at)
    while at is None:
        _drain(observer, queue)
        found = observer.findings
        most = _PART_S if found.needs else _PART_MOST_S
        if not queue or len(found.needs) >= PART_NAMES or time.monotonic() > began + most:
            break
        gfid, path = queue.popitem()
        queue.update(_list(work, observer, gfid, path))
    observer.finish()
    if observer.findings.doubted and not ctx.place.witnesses_content():
        # What changed there says so itself; here the only witness was a name that is gone.
        _look_at_names(work, observer, dict.fromkeys(observer.findings.doubted, Change.UNKNOWN))
        observer.finish()
    queue.update(observer.findings.unlisted)
    if observer.findings.astray:
        queue.update(where_now(work, observer, observer.findings.astray))
    if at is None and not queue:
        return observer.findings, None
    empty = encode_dirs([(gfid, b"") for gfid in queue if gfid in observer.findings.empty])
    dirs = encode_dirs(list(queue.items()))
    more = {**todo, "part": todo["part"] + 1, "at": at, "dirs": dirs, "empty": empty}
    return observer.findings, more


def _give_up_segment(work: Unit, number: int, error: SegmentDamaged) -> None:
    """A segment that cannot be read becomes a gap, which a hybrid crawl covers."""
    agent_call(work.ctx.place.changelog, "damaged", number=number)
    work.start_over(f"{error}; a hybrid crawl covers it")


def _drain(observer: Observer, queue: dict[bytes, bytes]) -> None:
    """Move directories that turned out to be new into the queue; wait for answers only when there are none."""
    if not queue and not observer.findings.unlisted:
        observer.flush()
        observer.collect()
    queue.update(observer.findings.unlisted)
    observer.findings.unlisted.clear()


def _list(work: Unit, observer: Observer, gfid: bytes, path: bytes) -> list[tuple[bytes, bytes]]:
    """Observe a whole directory; those below it, if all that is there will be new to the secondary."""
    work.alive()
    volume = work.ctx.volume
    try:
        fd = volume.open_dir(path, gfid)
    except VanishedError:
        observer.findings.astray[gfid] = path
        return []
    except OSError as error:
        observer.fail("entry", path, error, of=within(gfid))
        return []
    empty = observer.seems_empty(gfid)
    try:
        names = volume.names(fd, is_root=not path)
        below = observer.list_directory(fd, gfid, path, names, empty=empty)
        if not empty:
            observer.findings.meta.append((gfid, path))  # names may have come and gone
        return below if empty else []
    except OSError as error:
        observer.fail("entry", path, error, of=within(gfid))
        return []
    finally:
        os.close(fd)


def _look_at_records(work: Unit, observer: Observer, segment: Together, at: int) -> int | None:
    """Observe the names of records from ``at`` on; where the next part goes on, None at the end."""
    wanted: dict[bytes, dict[bytes, Change]] = {}
    entered: set[bytes] = set()  # directories whose names changed
    nameless: dict[bytes, Kind] = {}
    # Marks on directories may record a change of content under a name that is gone by now.
    unsaid = Change.NONE if work.ctx.place.witnesses_content() else Change.UNKNOWN
    seen = 0
    for seen, record in enumerate(segment.records, 1):
        if seen <= at:
            continue
        if seen > at + PART_NAMES:
            break
        if record.parent is None or record.name is None:
            if record.gfid is not None and record.kinds & Kind.B and not at:
                observer.born.add(
                    record.gfid
                )  # (in a later part it is not known what of it was not found before)
            if record.gfid is not None and record.kinds & ~Kind.B:
                nameless[record.gfid] = nameless.get(record.gfid, Kind(0)) | record.kinds
            continue
        if record.kinds & Kind.E:
            entered.add(record.parent)
        names = wanted.setdefault(record.parent, {})
        if record.kinds & _CAME == _CAME:
            observer.came.add((record.parent, record.name))
        if record.kinds & Kind.D:
            names[record.name] = Change.DATA
        else:
            names.setdefault(record.name, unsaid)
    else:
        seen = 0
    _look_at_objects(work, observer, segment, nameless)
    # Parents before what is in them: a shorter path first.
    away = [
        parent
        for parent in sorted(wanted, key=lambda gfid: _depth(segment, gfid))
        if not _look(work, observer, segment, parent, wanted[parent], entered=parent in entered)
    ]
    _have_listed(work, observer, away)
    return at + PART_NAMES if seen else None


def _look_at_objects(work: Unit, observer: Observer, segment: Together, objects: dict[bytes, Kind]) -> None:
    """Records that name no name: directories by their hint, the rest by the names that the index has.

    D of a directory: names in it may have changed unrecorded, and it is listed.
    """
    files = {}
    dressed = set()
    for gfid, kinds in objects.items():
        hint = segment.dirs.get(gfid)
        change = Change.DATA if kinds & Kind.D else Change.NONE
        if hint is not None or gfid == ROOT_GFID:
            observer.findings.meta.append((gfid, hint.path if hint else b""))
            if not kinds & Kind.D:
                continue
        if gfid == ROOT_GFID:  # no name leads to it
            observer.findings.unlisted.append((gfid, b""))
        elif not _look_by_gfid(work, observer, gfid, change, attributes=bool(kinds & Kind.M)):
            files[gfid] = change
            dressed |= {gfid} if kinds & Kind.M else set()
    _look_at_names(work, observer, files, dressed)


def _look_at_names(
    work: Unit, observer: Observer, files: dict[bytes, Change], dressed: Collection[bytes] = ()
) -> None:
    """Observe files by all names that the index has for them. ``dressed``: those whose attributes changed, see _look_by_gfid."""
    if not files:
        return
    volume = work.ctx.volume
    client = work.ctx.secondary(work.epoch).client
    known = client.names(files)
    for gfid, paths in known.items():
        looked = not paths
        # Where it is by now, whoever reads them finds out.
        observer.findings.meta += [(gfid, path) for path in paths[:1] if gfid in dressed]
        for path in paths:
            directory, name = os.path.split(path)
            try:
                fd = volume.open_dir_unchecked(directory)
            except VanishedError:
                continue
            except OSError as error:
                observer.fail("entry", path, error, gfid=gfid)
                looked = True
                continue
            try:
                parent = volume.identify_fd(fd)[0] if directory else ROOT_GFID
                observer.look(fd, parent, directory, {name: files[gfid]})
                looked = True
            finally:
                os.close(fd)
        if not looked and files[gfid] is not Change.NONE:
            # What it is in has moved, which says nothing of its content.
            client.unlist([gfid], doubt=True)
            observer.findings.failures += as_moved([(gfid, paths[0])], step="data")


def _look_by_gfid(work: Unit, observer: Observer, gfid: bytes, change: Change, *, attributes: bool) -> bool:
    """Observe an object where the volume says that it is now; False where it cannot tell.

    It may be renamed between the two, which is a record of its own, but says nothing of its content: so what was found
    at its name has to be it. ``attributes``: they changed, which need not show in its ctime (Gluster sets none for an
    extended attribute).
    """
    volume = work.ctx.volume
    try:
        for _ in range(_TRIES):
            work.alive()
            paths = volume.paths_of(gfid)
            if paths is None:
                return False
            found = [path for path in paths if _look_at(observer, volume, gfid, path, change)]
            if attributes and found:
                observer.findings.meta.append((gfid if found[0] else ROOT_GFID, found[0]))
            if found or not paths:
                return True
    except OSError as error:
        volume.check_answers(error)
    return False


def _look_at(observer: Observer, volume: DirectoryVolume, gfid: bytes, path: bytes, change: Change) -> bool:
    """Observe an object at ``path``; False if it is not there, before and after. Raises OSError."""
    directory, name = os.path.split(path)
    if not path:
        return True
    try:
        fd = volume.open_dir_unchecked(directory)
    except VanishedError:
        return False
    try:
        if not volume.is_at(fd, name, gfid):
            return False
        parent = volume.identify_fd(fd)[0] if directory else ROOT_GFID
        observer.look(fd, parent, directory, {name: change})
        return volume.is_at(fd, name, gfid)
    finally:
        os.close(fd)


def _depth(segment: Together, gfid: bytes) -> int:
    hint = segment.dirs.get(gfid)
    return hint.path.count(b"/") + bool(hint.path) if hint else 0


def _look(
    work: Unit,
    observer: Observer,
    segment: Together,
    parent: bytes,
    names: dict[bytes, Change],
    *,
    entered: bool,
) -> bool:
    """False: it could not be looked at now, and is to be listed when it is seen."""
    work.alive()
    try:
        fd, path = open_parent(work, segment, parent)
    except (VanishedError, OSError) as error:
        if isinstance(error, OSError):
            for at in believed_at(work, segment, parent):
                observer.fail("entry", at, error, of=within(parent))
        # Where a handle always leads to what it is of, it is gone, or comes from outside when it comes again.
        away = (
            parent in observer.born or not work.ctx.volume.keeps_handles or isinstance(error, NotFoundError)
        )
        observer.born.discard(parent)
        return not away
    try:
        if entered:
            # Its names changed, and so did its own times.
            observer.findings.meta.append((parent, path))
        observer.look(fd, parent, path, names)
    finally:
        os.close(fd)
    return True


def _have_listed(work: Unit, observer: Observer, directories: list[bytes]) -> None:
    """Names in them could not be looked at. They may have been renamed at that very moment, and be there after all."""
    if directories:
        observer.flush()  # which may have told of them already
        observer.collect()
        work.ctx.secondary(work.epoch).client.unlist(directories)
        observer.findings.unlisted += where_now(work, observer, dict.fromkeys(directories))
