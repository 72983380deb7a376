"""Asking about a point in the changelog of a session, and waiting until it is on the secondary."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING

from replication import checkpoints, snapshots
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.errors import UsageError
from replication.progress import Progress
from replication.volume.stime import marked_ns, read_mark

if TYPE_CHECKING:
    from replication.checkpoints import Checkpoint
    from replication.session import SessionDir

_LOOK_EVERY_S = 0.3
_AGENT_S = 10.0
_TOLD_S = (
    3.0  # it is told at once, where somebody is at work; and where a root cannot carry the mark nobody knows
)


def ask(place: SessionDir, time_ns: int | None) -> Checkpoint:
    """Ask about a time, or (None) about all that changed until now. Raises ProgressError."""
    with closing(Progress(place.progress)) as progress:
        if time_ns is not None:
            number = progress.ask(time_ns, position=None, by_time=True)
        else:
            now_ns = time.time_ns()
            position = _position(place)
            # A scan says what it has seen. Where nobody records nor scans now, the mark's time has to do,
            # unless the clock was set back: then it proves nothing, and a scan has to.
            scans = place.detector() == "scan" and place.progress.exists()
            by_time = position is None and not scans and progress.brick().stime_ns < now_ns
            number = progress.ask(now_ns, position=position, by_time=by_time)
        return next(found for found in progress.checkpoints() if found.id == number)


def ask_if_due(place: SessionDir, progress: Progress, every_s: float) -> str:
    """Ask about all that changed until now, if it is time to do so by itself, and the last one so asked for is reached."""
    now_ns = time.time_ns()
    last = progress.look(snapshots.last_asked)
    if not every_s or (last is not None and 0 <= now_ns - last[0] < every_s * 1e9):
        return "none is due"
    if last is not None and any(
        found.id == last[1] and found.reached_ns is None for found in progress.checkpoints()
    ):
        return f"checkpoint {last[1]} is not reached yet"
    found = ask(place, None)
    progress.change(lambda db: snapshots.asked(db, now_ns, found.id))
    return f"checkpoint {found.id}"


def _position(place: SessionDir) -> int | None:
    """Where the changelog stands: every change made before is at this position or an earlier one."""
    if not place.changelog.is_dir():
        return None
    try:
        return int(agent_call(place.changelog, "barrier", timeout=_AGENT_S)["position"])
    except (AgentRefused, AgentUnreachable):
        return None


def wait(place: SessionDir, number: int, timeout_s: float | None) -> Checkpoint | None:
    """Until a checkpoint is reached, and the secondary was told so; None when it is not within ``timeout_s``."""
    until = time.monotonic() + timeout_s if timeout_s is not None else None
    while True:
        for found in checkpoints.read(place.progress):
            if found.id == number and found.reached_ns is not None:
                _until_told(place, found)
                return found
        if until is not None and time.monotonic() >= until:
            return None
        time.sleep(_LOOK_EVERY_S)


def _until_told(place: SessionDir, reached: Checkpoint) -> None:
    """The primary may be lost at the next moment; then the secondary's own mark is what is known. It has it before this root."""
    session = place.load()
    until = time.monotonic() + _TOLD_S
    while marked_ns(read_mark(session.tree, session.id)) < reached.time_ns and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S / 3)


def parse_time(text: str) -> int | None:
    """``now``, or an ISO 8601 time, local where it names no zone, in nanoseconds. Raises UsageError."""
    if text == "now":
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is no time: give now, or 2026-11-25T12:30, with +01:00 or Z for another zone than the local one"
        ) from None
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000
