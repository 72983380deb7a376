"""What a walk did not find where it was to be: looked for when all is applied that was recorded by then.

A directory that is to be listed, and has moved, stays unlisted on the secondary, whatever its name becomes there. When the
changelog is applied up to a moment after that, the secondary's index has the name that it had then, and it is looked at there.
The mark waits (replication/unsettled.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from replication import failures, unsettled
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.failures import Failure
from tasks.deletes import gone_upto
from tasks.metadata import as_moved
from tasks.orphans import orphans

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator

    from replication.remote.answers import Whereabouts
    from replication.unsettled import Unsettled
    from tasks.context import Context

_ASK_EVERY_S = 1
_AT_ONCE = 1000  # directories
_LIST_AGAIN_S = 60
_TRIES = 8  # in two minutes and a half


def settle(ctx: Context, epoch: int, *, walking: bool) -> None:
    """Go on with what may have been missed. ``walking``: units of entries are under way, and list what they find."""
    rows = ctx.progress.look(unsettled.rows)
    if not rows:
        return
    front = ctx.progress.brick().front
    if any(row.gfid is None and row.upto is not None and row.upto <= front for row in rows):
        ctx.progress.change(lambda db: unsettled.applied(db, front))
    asked_of = None  # all that is unlisted
    for row in rows:
        if row.gfid == unsettled.ALL and row.upto is None:
            _note_unlisted(ctx, epoch, row.since_ns)
            client = ctx.secondary(epoch).client
            lacking = any(client.dirty(limit=1, undressed=each)[1] for each in (False, True))
            ctx.progress.change(partial(unsettled.doubted, row=row, lacking=lacking))
            asked_of = row.tries
        elif row.gfid == unsettled.ALL and row.upto is not None and row.upto <= front and not walking:
            _have_sent(ctx, epoch, row)
    rows = ctx.progress.look(unsettled.rows)
    now = time.time_ns()
    # (A time that is far away is a clock that jumped.)
    due = [
        r
        for r in rows
        if r.gfid and r.upto is not None and r.upto <= front and not now < r.again_ns < now + 10**11
    ]
    if due and not walking:
        _look_for(ctx, epoch, due[:_AT_ONCE])
        rows = ctx.progress.look(unsettled.rows)
    # What there was another reason to doubt since then is asked of the secondary once more before it waits for anything.
    asked = [row for row in rows if row.upto is None and (row.gfid != unsettled.ALL or row.tries == asked_of)]
    if not asked or not ctx.ledger.once_in(_ASK_EVERY_S, "settle"):
        return
    try:
        position = int(agent_call(ctx.place.changelog, "barrier")["position"])
    except (AgentRefused, AgentUnreachable):
        return  # the next look asks again
    ctx.progress.change(lambda db: unsettled.wait_for(db, asked, position))


def settle_scanned(ctx: Context, epoch: int) -> None:
    """The same where nobody records: what a scan has missed, the next one finds, or does not find any more."""
    missed = [row for row in ctx.progress.look(unsettled.rows) if row.gfid]
    found, skipped = [], _skipped(ctx)
    for start in range(0, len(missed), _AT_ONCE):
        some = missed[start : start + _AT_ONCE]
        where = _where(ctx, epoch, some)
        for row in some:
            at = where.get(bytes.fromhex(row.gfid or ""))
            if at is None or at.listed or (at.path is not None and not _can_be_listed(ctx, at.path, skipped)):
                found.append(row)
    ctx.progress.change(lambda db: unsettled.scanned(db, found))


def _note_unlisted(ctx: Context, epoch: int, since_ns: int) -> None:
    """All directories that somebody has to list are missed, without those in such ones, which are listed with them, or have a record of
    their own if they leave. (What is in one that is listed may leave with that.)
    """
    client = ctx.secondary(epoch).client
    upto = gone_upto(ctx)
    after = None
    while True:
        page, after = client.unlisted(after, upto=upto, tops=True)
        if page:
            ctx.progress.change(partial(unsettled.miss, directories=page, since_ns=since_ns))
        if after is None:
            return


def _where(ctx: Context, epoch: int, some: list[Unsettled]) -> dict[bytes, Whereabouts]:
    gfids = [bytes.fromhex(row.gfid or "") for row in some]
    return ctx.secondary(epoch).client.whereabouts(gfids, upto=gone_upto(ctx))


def _above(path: bytes) -> Iterator[bytes]:
    while path := os.path.dirname(path):
        yield path


def _look_for(ctx: Context, epoch: int, due: list[Unsettled]) -> None:
    """Have these directories looked at where the secondary has them by now; done with is what is listed, or gone."""
    where = _where(ctx, epoch, due)
    failing = _failing(ctx)
    skipped = _skipped(ctx)
    done: list[Unsettled] = []
    again: list[tuple[Unsettled, bytes | None]] = []
    given_up: list[tuple[Unsettled, bytes]] = []
    paths: list[bytes] = []
    for row in due:
        at = where.get(bytes.fromhex(row.gfid or ""))
        if at is None or at.listed:
            done.append(row)  # as far as all is applied: what came after that may tell more
        elif at.path is None:
            again.append(
                (row, None)
            )  # without a name, or with one that is held: it comes with a record, or to an end
        elif not _can_be_listed(ctx, at.path, skipped):
            done.append(row)
        elif row.tries >= _TRIES and not _is_among(at.path, failing):
            given_up.append((row, at.path))
        else:
            again.append((row, at.path))
            paths.append(at.path)

    def note(db: sqlite3.Connection) -> None:
        unsettled.listed(db, done)
        unsettled.look_again(db, again)
        # Whatever keeps it from being listed: a person is to see it.
        failures.record(db, [_as_failure(row, path) for row, path in given_up], [], 0)
        unsettled.give_up(db, (row for row, _ in given_up))

    ctx.progress.change(note)  # before it is asked for: what fails now is tried again
    _have_listed(ctx, paths)


def list_again(ctx: Context, epoch: int) -> bool:
    """Have directories listed that the secondary had to make again, for somebody who could not list them; whether there were any.

    Each is asked for once a minute, which is durable in the changelog. What cannot be listed stays unlisted: what failed
    is on the failure list, and what is mounted there is not ours.
    """
    failing = _failing(ctx)
    page, _ = ctx.secondary(epoch).client.unlisted()
    paths = [
        path for gfid, path in page
        if path is not None and _can_be_listed(ctx, path, failing) and ctx.ledger.once_in(_LIST_AGAIN_S, f"list:{gfid.hex()}")
    ]  # fmt: skip
    _have_listed(ctx, paths)
    return bool(paths)


def _have_sent(ctx: Context, epoch: int, row: Unsettled) -> None:
    """What was recorded is applied, so nobody else is going to send what is left: it is tried again, and holds the mark as long."""
    files, bare, more = orphans(ctx, epoch)
    left = as_moved(files, step="data") + as_moved(bare)

    def note(db: sqlite3.Connection) -> None:
        failures.record(db, left, [], row.since_ns)
        unsettled.doubted(db, row, lacking=more)

    ctx.progress.change(note)


def _skipped(ctx: Context) -> set[str]:
    return {skip.path for skip in ctx.progress.skips() if skip.step == "entry" and skip.path is not None}


def _failing(ctx: Context) -> set[str]:
    return ctx.progress.look(failures.paths) | _skipped(ctx)


def _as_failure(row: Unsettled, path: bytes) -> Failure:
    text = os.fsdecode(path)
    error = f"{text} is not where it was, or cannot be listed; it was looked for {row.tries} times"
    of = failures.within(bytes.fromhex(row.gfid or ""))
    return Failure(
        step="entry", gfid=None, path=text, of=of, code="moved", error=error, first_ns=row.since_ns
    )


def _can_be_listed(ctx: Context, path: bytes, failing: set[str]) -> bool:
    """Whether neither it, nor what it is in, fails, or belongs to somebody else because something is mounted there."""
    mounted = any(ctx.volume.is_mount_point(each) for each in (path, *_above(path)))
    return not _is_among(path, failing) and not mounted


def _is_among(path: bytes, failing: set[str]) -> bool:
    return bool(failing) and any(os.fsdecode(each) in failing for each in (path, *_above(path)))


def _have_listed(ctx: Context, paths: Iterable[bytes]) -> None:
    """Record that these directories are to be listed, with all below them."""
    looks: dict[bytes, list[bytes]] = {}
    for path in paths:
        directory, name = os.path.split(path)
        looks.setdefault(directory, []).append(name)
    for directory, names in looks.items():
        with contextlib.suppress(AgentRefused, AgentUnreachable):
            # D of a directory has it listed. Refused: it has moved since, and has another path when it is asked for next.
            text = [os.fsdecode(name) for name in names]
            agent_call(ctx.place.changelog, "look", dir=os.fsdecode(directory), names=text, kinds="EMD")
