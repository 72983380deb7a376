"""When a run that is to end by itself has nothing left to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import redis

from replication import unsettled
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from scheduler.send import send
from tasks.canvas import publish_signature, retry_signature

if TYPE_CHECKING:
    from replication.progress import Brick
    from tasks.context import Context

_FOLLOW_S = 60.0
_SCANS = 4  # after so many what moves is not followed for longer


class Completion:
    """Whether all is there that was there, or was recorded, when the run began with ``epoch``."""

    def __init__(self, ctx: Context, epoch: int) -> None:
        self._ctx = ctx
        self._epoch = epoch
        self._target: int | None = None
        self._until_ns = 0
        self._scans: set[str] = set()
        self.missed = 0  # what moved, and was not found in all that time
        self._final = 0
        self._follow_until = 0.0

    def reached(self) -> bool:
        """Whether the run has nothing left to do; not while Redis is away."""
        try:
            return self._all_there()
        except redis.RedisError:
            return False

    def _all_there(self) -> bool:
        """Whether all that existed at the start, and all that was recorded until the crawl ended, is there."""
        brick = self._ctx.progress.brick()
        if brick.crawl is not None and brick.crawl not in self._scans and len(self._scans) < _SCANS:
            self._scans.add(brick.crawl)
            self._follow_until = 0.0  # what it finds is looked for when it has ended
        if not brick.complete or brick.crawl is not None or self._deletes_wait():
            return False
        if self._ctx.place.detector() == "scan":
            if brick.crawl_ended < self._epoch:
                return False
            return not self._missed(2**63) and not self._on_the_move() and self._published(brick)
        if self._target is None:
            try:
                self._target = int(agent_call(self._ctx.place.changelog, "barrier")["position"])
                self._until_ns = time.time_ns()
            except (AgentRefused, AgentUnreachable):
                return False
        done = brick.front >= self._target and not self._missed(self._until_ns) and not self._on_the_move()
        return done and self._published(brick)

    def _missed(self, until_ns: int) -> bool:
        """Whether something as old as that may have been missed because it moved, and is still being followed, for a minute."""
        rows = [row for row in self._ctx.progress.look(unsettled.rows) if row.since_ns <= until_ns]
        self.missed = sum(bool(row.gfid) for row in rows)
        # What is no directory ends with the changelog, which is waited for however long that takes.
        return self.missed < len(rows) or (self.missed > 0 and self._follows())

    def _follows(self) -> bool:
        self._follow_until = self._follow_until or time.monotonic() + _FOLLOW_S
        return time.monotonic() <= self._follow_until

    def _deletes_wait(self) -> bool:
        """Whether the secondary holds deletions until it is certain that they are none of a rename."""
        return self._ctx.progress.held().any and not self._ctx.session.ignore_deletes

    def _published(self, brick: Brick) -> bool:
        """Whether the mark of the moment when all was done is on both roots; a task is asked to write it there."""
        self._final = self._final or brick.stime_ns
        if self._ctx.ledger.published() >= self._final:
            return True
        if self._ctx.ledger.once_in(1, "publish"):
            send(publish_signature(self._ctx.session.name, brick.epoch))
        return False

    def _on_the_move(self) -> bool:
        """Whether files that were renamed while they were to be read are still being followed, for a minute."""
        if not any(failure.code == "moved" for failure in self._ctx.progress.failures()):
            return False
        if not self._follows():
            return False
        if self._ctx.ledger.once_in(1, "follow"):
            send(retry_signature(self._ctx.session.name))
        return True
