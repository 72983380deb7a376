"""The checks before a session is created, and again by `doctor`: each is shown with what to do about it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.errors import SeamarkError
from replication.remote.client import SecondaryError
from replication.remote.look import looking
from replication.remote.target import parse_target
from scheduler.nesting import check_nesting
from scheduler.preflight import check_primary, in_child, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.session import Session, SessionDir


class Outcome(NamedTuple):
    """One check. ``says``: what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    says: str


def check_pair(place: SessionDir, session: Session, state_dir: str) -> Iterator[Outcome]:
    """All checks of a primary and its secondary, in the order in which they make sense; ends at what others need."""
    try:
        check_nesting(os.fsencode(session.primary), parse_target(session.secondary), state_dir)
        check_primary(session)
    except SeamarkError as error:
        yield Outcome("primary", ok=False, says=error.message)
        return
    yield Outcome("primary", ok=True, says=session.primary)
    try:
        hello = in_child(lambda: _look(place, session))
    except SeamarkError as error:
        yield Outcome("secondary", ok=False, says=error.message)
        return
    if hello.get("missing"):
        yield Outcome(
            "secondary", ok=True, says=f"{session.secondary} does not exist yet: it is made at the start"
        )
        return
    yield Outcome("secondary", ok=True, says=f"{session.secondary}, Python {hello['python']}")
    if not hello["fs"]["writable"]:
        yield Outcome("writable", ok=False, says="the secondary is read-only; mount it writable")


def _look(place: SessionDir, session: Session) -> dict[str, Any]:
    try:
        with looking(place, session, dry=True) as (_, hello):
            return hello
    except SecondaryError as error:
        raise refused(session, error) from None
