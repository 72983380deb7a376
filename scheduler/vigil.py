"""What the process of a session does beside starting others: judges their health, and says so.

Once a second it looks at everything (signs.py), judges (health.py), heals what is stuck (heal.py),
and writes the status file, which commands, metrics and pages read.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import redis

from replication import drills, proofs, snapshots
from replication.changelog.brickstatus import last_rows
from replication.changelog.index import State
from replication.session import Desired
from scheduler.events import EventBook, Kind
from scheduler.heal import Healer
from scheduler.health import Look, Reason, judge
from scheduler.history import History
from scheduler.procfs import uptime
from scheduler.reports import Status, status_of
from scheduler.signs import Sign, Signs
from scheduler.snapshot import Phase, ProgressSnapshot
from scheduler.status_file import Backlog, StatusFile
from scheduler.supervisor import LONG_ENOUGH_S

if TYPE_CHECKING:
    from replication.proofs import Proven
    from scheduler.lease import Holder
    from scheduler.supervisor import Supervisor
    from tasks.context import Context

_EVERY_S = 1.0
_JUMP_KEPT_S = 60.0
_KINDS = {Status.ACTIVE: Kind.ACTIVE, Status.FAULTY: Kind.FAULTY, Status.PAUSED: Kind.PAUSED}
_ENDED = {Phase.STOPPING, Phase.FINISHED, Phase.FAILED}


class Vigil:
    """The vigil over one session, in its own process."""

    def __init__(self, ctx: Context, supervisor: Supervisor, active: Holder | None = None) -> None:
        self._active = active
        self._ctx = ctx
        self._supervisor = supervisor
        self._file = StatusFile(ctx.place)
        self._events = EventBook(ctx.place)
        self._history = History(ctx.place)
        self._spoke = False
        self._began = time.monotonic()
        self._signs = Signs(ctx)
        self._healer = Healer(supervisor)
        self._clock = Clock()
        self._moved: tuple[object, float] = (None, time.monotonic())
        self._since: dict[str, float] = {}
        self._due = 0.0

    def look(self, snapshot: ProgressSnapshot) -> None:
        """Judge, heal and say, if it is time. Never raises for what is only wrong with the session."""
        now = time.monotonic()
        if now < self._due and snapshot.phase not in _ENDED:
            return
        self._due = now + _EVERY_S
        ctx = self._ctx
        ctx.refresh()
        signs = self._signs.look(self._supervisor.services, now)
        # A Redis that hangs is asked once in a look: each further question would take as long.
        answers = self._signs.redis_silent_since is None
        counters = self._counters() if answers else {}
        look = self._everything(snapshot, signs, counters, now)
        if answers:
            ctx.tell(ctx.progress.brick().epoch)
        reasons = tuple(self._dated(judge(look)))
        self._healer.heal(look.signs)
        self._tell(snapshot, look, list(reasons))
        backlog = self._backlog(snapshot)
        self._file.write(
            snapshot, detector=ctx.place.detector(), backlog=backlog, reasons=reasons,
            counters=counters, rpo_s=ctx.session.rpo, active=self._active,
        )  # fmt: skip
        self._history.note(counters, snapshot.lag_s, ctx.session.rpo, backlog.bytes, snapshot.failures)

    def _tell(self, snapshot: ProgressSnapshot, look: Look, reasons: list[Reason]) -> None:
        """Events for what changed."""
        state = self._ctx.place.state()
        desired = state.desired if state is not None else Desired.STARTED
        if snapshot.phase in (Phase.STOPPING, Phase.FINISHED, Phase.FAILED):
            self._events.state(
                Kind.STOPPED, "" if desired is Desired.STOPPED else "the monitor, or the run, ends"
            )
        elif (status := status_of(desired, snapshot, reasons)) in _KINDS and not self._too_soon(status):
            self._events.state(_KINDS[status], reasons[0].text if reasons else "")
            self._spoke = True
        self._events.lag(look.lag_s, look.rpo_s)
        self._events.checkpoints(self._ctx.progress.checkpoints())
        self._events.failures(self._ctx.progress.failures())
        self._events.held(look.question)
        self._events.differences(look.differences)
        self._events.snapshots(self._ctx.progress.look(snapshots.known))
        self._events.drill(self._ctx.progress.look(drills.last))

    def _too_soon(self, status: Status) -> bool:
        """Whether another process told that it is faulty, and this one may yet die as that did."""
        return (
            status is Status.ACTIVE and not self._spoke and self._events.told_state == Kind.FAULTY
            and time.monotonic() - self._began < LONG_ENOUGH_S
        )  # fmt: skip

    def _counters(self) -> dict[str, int]:
        try:
            return self._ctx.ledger.counters()
        except redis.RedisError:
            return {}

    def _everything(
        self, snapshot: ProgressSnapshot, signs: list[Sign], counters: dict[str, int], now: float
    ) -> Look:
        ctx = self._ctx
        silent_since = self._signs.redis_silent_since
        oldest = ctx.progress.failures(1)
        stime = snapshot.stime or 0.0
        return Look(
            signs=signs,
            redis_silent_s=now - silent_since if silent_since is not None else 0.0,
            redis_error=self._signs.redis_error,
            broker_error=self._signs.broker_error,
            trouble=ctx.trouble() if silent_since is None else None,
            question=ctx.progress.held().question,
            working=snapshot.phase is Phase.RUNNING,
            paused=ctx.resting() is not None,
            unmoved_s=self._unmoved(snapshot, counters, now),
            failures=snapshot.failures,
            oldest=oldest[0] if oldest else None,
            lag_s=snapshot.lag_s,
            rpo_s=ctx.session.rpo,
            differences=self._proven().left,
            snapshot_error=self._snapshot_error(),
            drill_error=self._drill_error(),
            waits_for=self._waits_for(),
            clock_jump_s=self._clock.jumped(),
            ahead_s=max(0.0, stime - time.time()),
        )

    def _proven(self) -> Proven:
        slices = self._ctx.session.verify.slices
        return self._ctx.progress.look(lambda db: proofs.proven(db, slices))

    def _waits_for(self) -> str:
        known = last_rows(self._ctx.place.changelog) if self._ctx.session.gluster is not None else None
        return known.waits_for if known is not None else ""

    def _snapshot_error(self) -> str:
        known = self._ctx.progress.look(snapshots.known)
        return known.error if known is not None else ""

    def _drill_error(self) -> str:
        """Of the last drill with the session's own check: what somebody tries by hand says nothing of the session."""
        report = self._ctx.progress.look(partial(drills.last, own=True))
        return report["reason"] if report is not None and not report["passed"] else ""

    def _unmoved(self, snapshot: ProgressSnapshot, counters: dict[str, int], now: float) -> float:
        """Seconds since anything moved. A unit at work counts: its task says so each second."""
        claims: dict[str, float] = {}
        if self._signs.redis_silent_since is None:
            with contextlib.suppress(redis.RedisError):
                claims = self._ctx.ledger.claims()
        at_work = any(age < _CLAIM_S for age in claims.values())
        state = (snapshot.stime, snapshot.phase is Phase.RUNNING, tuple(sorted(counters.items())))
        if at_work or state != self._moved[0]:
            self._moved = (state, now)
        return now - self._moved[1]

    def _dated(self, reasons: list[Reason]) -> list[Reason]:
        """Each with the time at which it was first found."""
        at = time.time()
        self._since = {reason.code: self._since.get(reason.code, at) for reason in reasons}
        return [
            reason if reason.since is not None
            else Reason(code=reason.code, text=reason.text, faulty=reason.faulty, since=self._since[reason.code])
            for reason in reasons
        ]  # fmt: skip

    def _backlog(self, snapshot: ProgressSnapshot) -> Backlog:
        brick = self._ctx.progress.brick()
        entries = None
        if brick.complete and brick.crawl is None:
            pending = self._ctx.store.segments(brick.front)
            gap = any(segment.state is State.GAP for segment in pending)
            entries = None if gap else sum(segment.records for segment in pending)
        return Backlog(
            entries=entries,
            files=snapshot.files_total - snapshot.files_done,
            bytes=snapshot.bytes_total - snapshot.bytes_done,
            age_s=snapshot.lag_s,
        )


_CLAIM_S = 10.0


class Clock:
    """Notices that the clock was set: it and the time since boot drift apart."""

    def __init__(self) -> None:
        self._apart = time.time() - uptime()
        self._jumps: deque[tuple[float, float]] = deque()

    def jumped(self) -> float:
        """By how many seconds the clock was set within the last minute."""
        now = uptime()
        apart = time.time() - now
        if abs(apart - self._apart) > 1.0:
            self._jumps.append((now, apart - self._apart))
        self._apart = apart
        while self._jumps and now - self._jumps[0][0] > _JUMP_KEPT_S:
            self._jumps.popleft()
        return sum(jump for _, jump in self._jumps)
