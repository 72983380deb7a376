"""Is a session healthy, and if not, why: decided from one look, by nothing but what is in it.

Each reason has a stable code (docs/scripting.md lists them), and words for people that say what is
wrong, since when, and of what. The first one is the root of the others, as far as that can be known.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from scheduler.signs import AGENT
from tasks import alive

if TYPE_CHECKING:
    from replication.failures import Failure
    from scheduler.signs import Sign

STALLED_S = 60.0  # there is work, and nothing at all moved
CRASHES = 3  # deaths in a row, each within half a minute of a start
REDIS_S = 5.0
_CLOCK_S = 5.0
# What the secondary, or the way there, refuses: the code of the trouble is the reason's.
_TROUBLES = {"no-space": "secondary-full", "read-only": "secondary-read-only", "unexpected": "unexpected"}
_SHOWN_PATH = 60


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a session is not healthy. ``faulty``: it does not replicate at all, or nobody can tell."""

    code: str
    text: str
    faulty: bool = True
    since: float | None = None  # seconds since the epoch


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is judged. Durations are seconds on a clock that nobody sets."""

    signs: list[Sign]
    redis_silent_s: float = 0.0
    redis_error: str = ""  # what it says instead of doing what it is asked
    broker_error: str = ""  # why the broker, where that is another server, does not take messages
    trouble: tuple[str, str] | None = None
    question: str = ""  # what a person is asked before deletions are carried out
    working: bool = False  # something is to be done
    paused: bool = False
    unmoved_s: float = 0.0  # for how long neither the mark nor any counter moved
    failures: int = 0
    oldest: Failure | None = None
    lag_s: float | None = None
    rpo_s: int | None = None
    differences: int = 0  # that a comparison of the two ends found, and did not repair
    snapshot_error: str = ""  # why a checkpoint that was reached has no snapshot
    drill_error: str = ""  # why the last drill failed
    waits_for: str = ""  # a brick of a Gluster volume of which nobody tells what happens to it
    clock_jump_s: float = 0.0  # by which the clock was set, within the last minute
    ahead_s: float = 0.0  # by which the mark lies in the future


def judge(look: Look) -> list[Reason]:
    """All reasons, the most fundamental first; none: healthy."""
    if look.redis_silent_s > REDIS_S:
        text = f"Redis has not answered for {look.redis_silent_s:.0f} s"
        if look.redis_error:
            text = f"Redis has refused to work for {look.redis_silent_s:.0f} s: {look.redis_error}"
        return [Reason(code="redis", text=text), *_by_degree(look)]
    if look.broker_error:
        return [Reason(code="broker", text=look.broker_error), *_by_degree(look)]
    found = [reason for sign in look.signs if sign.role != alive.SECONDARY for reason in _of_role(sign)]
    found += _of_secondary(look)
    if look.question:
        found.append(Reason(code="max-delete", text=look.question))
    if not found and look.working and not look.paused and look.unmoved_s > STALLED_S:
        text = f"there is work, but the mark has not moved and nothing was done for {look.unmoved_s:.0f} s"
        found.append(Reason(code="stalled", text=text))
    return [*found, *_by_degree(look)]


def _of_role(sign: Sign) -> list[Reason]:
    code = sign.role.replace(" ", "-")
    if sign.deaths >= CRASHES:
        return [Reason(code=code, text=f"{sign.role} ended {sign.deaths} times in a row ({sign.why})")]
    if sign.is_silent:
        how = "records nothing" if sign.role == AGENT else "gives no sign of life"
        state = "under its own supervisor" if sign.apart else "not running"
        who = f"{sign.role} ({f'process {sign.pid}' if sign.pid else state})"
        stopped = ", stopped by a signal" if sign.stopped else ""
        return [Reason(code=code, text=f"{who}{stopped} {how} for {sign.silent_s:.0f} s")]
    if sign.stopped:
        pids = ", ".join(map(str, sign.stopped))
        return [Reason(code=code, text=f"{sign.role}: stopped by a signal: process {pids}")]
    return []


def _of_secondary(look: Look) -> list[Reason]:
    if look.trouble is not None:
        code, text = look.trouble
        return [Reason(code=_TROUBLES.get(code, "secondary"), text=text)]
    for sign in look.signs:
        if sign.role == alive.SECONDARY and sign.is_silent:
            return [
                Reason(code="secondary", text=f"the secondary has not answered for {sign.silent_s:.0f} s")
            ]
    return []


def _by_degree(look: Look) -> list[Reason]:
    """What does not stop it, but is not what was asked for."""
    found = []
    if look.failures and look.oldest is not None:
        since = look.oldest.last_ns / 1e9
        what = _cut(look.oldest.path or look.oldest.gfid or "?")
        text = (
            f"{look.failures} failed, which holds the mark; the oldest: {look.oldest.step} of {what}: "
            f"{_cut(look.oldest.error)}, last tried {_clock(since)}"
        )
        found.append(Reason(code="failures", text=text, faulty=False, since=since))
    if look.waits_for:
        found.append(Reason(code="bricks", text=f"the mark waits for {look.waits_for}", faulty=False))
    if look.differences:
        text = (
            f"{look.differences} names of the secondary are not as on the primary, says the last comparison: "
            "seamark verify NAME tells which, and with --repair mends them"
        )
        found.append(Reason(code="differences", text=text, faulty=False))
    if look.snapshot_error:
        text = f"the last checkpoint has no snapshot: {look.snapshot_error}"
        found.append(Reason(code="snapshot", text=text, faulty=False))
    if look.drill_error:
        text = f"the last drill failed: {look.drill_error}; seamark drill NAME holds another"
        found.append(Reason(code="drill", text=text, faulty=False))
    if look.rpo_s is not None and look.lag_s is not None and look.lag_s > look.rpo_s:
        text = f"the lag is {look.lag_s:.0f} s, more than the target of {look.rpo_s} s"
        found.append(Reason(code="rpo", text=text, faulty=False))
    if abs(look.clock_jump_s) > _CLOCK_S:
        text = (
            f"the clock of the primary was set by {look.clock_jump_s:+.0f} s: lag and times are not right yet"
        )
        found.append(Reason(code="clock", text=text, faulty=False))
    elif look.ahead_s > _CLOCK_S:
        text = (
            f"the clock of the primary is {look.ahead_s:.0f} s behind the mark: lag and times are not right"
        )
        found.append(Reason(code="clock", text=text, faulty=False))
    return found


def _cut(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= _SHOWN_PATH else "…" + text[-_SHOWN_PATH:]


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
