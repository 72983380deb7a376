"""Active or passive: of the nodes that see a primary and share a broker, one works, and the others wait for it to end.

While Redis is away nobody begins, and whoever is at work goes on. Nothing here is what makes it safe: lease.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

import redis

from replication.errors import TemporaryError
from replication.session import Desired, new_instance
from replication.volume.stime import marked_ns, read_mark
from scheduler.events import EventBook, Kind
from scheduler.health import REDIS_S, Reason
from scheduler.lease import RENEW_S
from scheduler.snapshot import Phase, ProgressSnapshot
from scheduler.status_file import StatusFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler.lease import Holder, Lease, Seen
    from tasks.context import Context

log = logging.getLogger("seamark.standby")
_TURN_S = 0.25


class SteppedBack(Exception):
    """Another node is at work by now: everything of this one ends, and it waits for its turn."""


class Standby:
    """The part of one node in a session that others may run as well."""

    def __init__(self, ctx: Context, lease: Lease, update: Callable[[ProgressSnapshot], None]) -> None:
        self._ctx = ctx
        self._lease = lease
        self._update = update
        self._file = StatusFile(ctx.place)
        self._events = EventBook(ctx.place)
        self._due = 0.0
        self._free_from = 0.0  # time.monotonic() from which a lease that nobody has may be taken
        self._silent_since: float | None = None
        self.active: Holder | None = None  # who is at work, as far as is known

    # ---- at work

    def take(self) -> bool:
        """Whether this node may begin now. False while Redis is away."""
        seen = self._ask(self._lease.look)
        if seen is None or not (seen.ours or seen.freed or self._is_over(seen)):
            return False
        seen = self._ask(self._lease.take)
        return seen is not None and seen.ours

    def keep(self) -> None:
        """Renew the lease, when it is time. Raises SteppedBack when another node has it."""
        if time.monotonic() < self._due:
            return
        seen = self._ask(self._lease.take)
        self._due = time.monotonic() + RENEW_S
        if seen is not None and not seen.ours:
            raise SteppedBack(f"node {self.active.node if self.active else '?'} has taken over")

    def end(self) -> None:
        """Nothing is under way here any more: another node may begin at once."""
        with contextlib.suppress(redis.RedisError):
            self._lease.free()

    def check_own(self) -> None:
        """That who is at work is not who we are: the state of one node is no state of another. Raises TemporaryError."""
        if self.active is None or self.active.instance != self._lease.instance:
            return
        self._ctx.place.change_state(instance=new_instance())
        raise TemporaryError(
            f"the state of session {self._ctx.session.name} was copied from node {self.active.node}, which is active; it "
            "is made one of its own: start it again"
        )

    # ---- waiting

    def wait(self, stopping: Callable[[], object]) -> bool:
        """Until this node may begin; False when it is told to stop before that."""
        told = ""
        while not stopping():
            if self.take():
                if told:
                    log.info("%s: this node takes over", self._ctx.session.name)
                return True
            words = self._words()
            if words != told:
                told = words
                log.info("%s: waiting: %s", self._ctx.session.name, words)
            self._say(Phase.PASSIVE, words)
            time.sleep(_TURN_S)
        self._say(Phase.STOPPING, "")
        return False

    def _is_over(self, seen: Seen) -> bool:
        """Whether nobody has the lease, and not only because Redis was emptied: whoever had it takes it again then."""
        now = time.monotonic()
        if seen.holder is not None:
            self._free_from = now + seen.left_s
            return False
        return now >= self._free_from

    def _ask(self, question: Callable[[], Seen]) -> Seen | None:
        """None while Redis does not answer; who had the lease then has all its time again."""
        now = time.monotonic()
        try:
            seen = question()
        except redis.RedisError:
            self._silent_since = self._silent_since or now
            self._free_from = now + self._lease.ttl_s
            return None
        self._silent_since = None
        self.active = seen.holder
        return seen

    def _words(self) -> str:
        if self._silent_since is not None:
            return "waiting for Redis"
        if self.active is None:
            return "another node was active a moment ago"
        return f"node {self.active.node} is active"

    def _say(self, phase: Phase, words: str) -> None:
        """In the status file, on the screen, and as an event."""
        now = time.monotonic()
        if now < self._due and phase is Phase.PASSIVE:
            return
        self._due = now + RENEW_S
        ctx = self._ctx
        ctx.refresh()
        silent_s = now - self._silent_since if self._silent_since is not None else 0.0
        reasons: tuple[Reason, ...] = ()
        if silent_s > REDIS_S:
            reasons = (Reason(code="redis", text=f"Redis has not answered for {silent_s:.0f} s"),)
        stime = marked_ns(read_mark(ctx.session.tree, ctx.session.id)) / 1e9
        snapshot = ProgressSnapshot(phase=phase, state=words, stime=stime or None)
        self._file.write(snapshot, reasons=reasons, rpo_s=ctx.session.rpo, active=self.active)
        self._update(snapshot)
        self._tell(phase, words, reasons)

    def _tell(self, phase: Phase, words: str, reasons: tuple[Reason, ...]) -> None:
        state = self._ctx.place.state()
        if phase is Phase.STOPPING:
            stopped = state is not None and state.desired is Desired.STOPPED
            self._events.state(Kind.STOPPED, "" if stopped else "the monitor, or the run, ends")
        elif reasons:
            self._events.state(Kind.FAULTY, reasons[0].text)
        elif self.active is not None:
            self._events.state(Kind.PASSIVE, words)
