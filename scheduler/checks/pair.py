"""The checks of a primary and its secondary, in the order in which they make sense.

They run in the process that shows them, one by one as they are made; ssh brings threads, so nothing may be
forked after them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from replication.errors import LockedError, SeamarkError
from replication.gluster.glusterd import volume_info
from replication.remote.answers import SecondaryError
from replication.remote.look import looking, ssh_options
from replication.remote.target import parse_target
from replication.session import SessionDir, session_names
from scheduler.checks.features import (
    check_features,
    check_programs,
    check_rights,
    check_snapshots,
    primary_has,
)
from scheduler.checks.gluster import check_volume
from scheduler.checks.outcome import Outcome, fail, good
from scheduler.checks.room import check_room
from scheduler.checks.way import Far, walk
from scheduler.nesting import check_nesting
from scheduler.preflight import check_not_emptied, check_primary, refused
from scheduler.primary import present

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.remote.endpoint import SshOptions
    from replication.session import Session

# What no --force helps against: it would end each start of the session.
_FATAL = frozenset({"owned", "not-empty", "inside", "loop"})


def check_pair(
    place: SessionDir,
    session: Session,
    state_dir: str,
    access: SshOptions | None = None,
    *,
    gets_nodes_key: bool = False,
) -> Iterator[Outcome]:
    """All checks; ends at what the others need. ``access``: another way there than the session's own.

    ``gets_nodes_key``: the session is about to get a key for the other nodes of a Gluster pool.
    """
    try:
        with present(session):
            yield from _check_pair(place, session, state_dir, access, gets_nodes_key=gets_nodes_key)
    except SeamarkError as error:
        yield fail("primary", error, fatal=True)


def _check_pair(
    place: SessionDir, session: Session, state_dir: str, access: SshOptions | None, *, gets_nodes_key: bool
) -> Iterator[Outcome]:
    try:
        check_other_sessions(place.name, Path(state_dir), session.id)
        check_nesting(os.fsencode(session.tree), parse_target(session.secondary), state_dir)
        session = msgspec.structs.replace(session, root=check_primary(session))
        has = primary_has(session.tree)
    except SeamarkError as error:
        yield fail("primary", error, fatal=True)
        return
    yield good("primary", f"{session.primary} ({has['type'] or 'unknown file system'})")
    yield from check_volume(place, session, gets_nodes_key=gets_nodes_key)
    options = access or ssh_options(place, session, dry=True)
    ctx = Far(session, parse_target(session.secondary), options)
    if ctx.target.is_remote and shutil.which("ssh") is None and session.sync_method in ("rsync", "tar"):
        yield fail("ssh", f"there is no ssh here, which {session.sync_method} needs: install openssh-client")
    facts = yield from walk(ctx)
    if facts is not None:
        yield from check_secondary(place, ctx, has, facts)


def check_secondary(
    place: SessionDir, ctx: Far, has: dict[str, Any], facts: dict[str, Any]
) -> Iterator[Outcome]:
    """What the survey found, and what the secondary says of itself."""
    session = ctx.session
    if session.gluster is not None and facts.get("volume_id") == volume_info(session.gluster.volume).id:
        words = "primary and secondary are the same volume, in which each gfid is of one object"
        yield fail("secondary", f"{words}: choose another volume, or a directory", fatal=True)
        return
    if facts["root"] == "missing" and not facts["parent"]:
        where = os.path.dirname(os.fsdecode(ctx.target.path))
        yield fail("secondary", f"neither {session.secondary} nor {where} exists there: make {where}")
        return
    try:
        with looking(place, session, dry=True, options=ctx.options) as (_, hello):
            check_not_emptied(session, hello)
    except SecondaryError as error:
        yield fail("secondary", refused(session, error), fatal=error.code in _FATAL)
        return
    except SeamarkError as error:
        yield fail("secondary", error)
        return
    entries = int(hello.get("entries", 0))
    if facts["root"] == "missing":
        yield good("secondary", f"{session.secondary} does not exist yet: it is made at the start")
    else:
        words = f"holds {entries:,} names of this session" if entries else "empty, or to be taken over"
        yield good("secondary", f"{session.secondary}: {words}")
    yield from check_rights(facts)
    yield from check_programs(session, facts)
    yield from check_features(has, facts)
    yield from check_snapshots(session, facts)
    yield check_room(session.tree, facts, entries)


def check_other_sessions(name: str, state_dir: Path, pair: str) -> None:
    """Two sessions on one pair would fight over the secondary. Raises LockedError."""
    for other in session_names(state_dir):
        try:
            state = SessionDir(state_dir, other).state()
        except SeamarkError:
            continue  # a damaged session prevents no other
        if other != name and state is not None and state.id == pair:
            raise LockedError(f"session {other} replicates the same primary to the same secondary")
