"""How far a session is: put together from durable state and live counters."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import redis

from replication import unsettled
from replication.changelog.index import State
from scheduler.snapshot import Crawl, Phase, ProgressSnapshot

if TYPE_CHECKING:
    from replication.changelog.index import SegmentInfo
    from replication.progress import Brick
    from tasks.context import Context

_RECORDED_NS = 15 * 10**9  # the agent's position moves on every 5 s
_RATE_WINDOW_S = 5.0


class Status:
    """Looks at one session again and again; rates are over the last few seconds."""

    def __init__(self, ctx: Context, started_ns: int) -> None:
        self._ctx = ctx
        self._started_ns = started_ns
        self._recent: deque[tuple[float, int, int]] = deque()
        self.snapshot = ProgressSnapshot()

    def look(self, phase: Phase | None = None, state: str = "") -> ProgressSnapshot:
        """The present state. While Redis is away the last numbers stay."""
        try:
            self.snapshot = self._look(phase, state)
        except redis.RedisError:
            self.snapshot = replace(
                self.snapshot, phase=phase or Phase.STARTING, state=state or "waiting for Redis",
                rate_bytes_s=0.0, files_s=0.0, eta_s=None, lag_s=self._lag_by_mark(),
            )  # fmt: skip
        return self.snapshot

    def _look(self, phase: Phase | None, state: str) -> ProgressSnapshot:
        ctx = self._ctx
        ctx.refresh()
        brick = ctx.progress.brick()
        counters = ctx.ledger.counters()
        busy = ctx.ledger.opened() > ctx.ledger.forgotten()
        pending = [s for s in ctx.store.segments(brick.front) if s.state is not State.TICK]
        files, size = counters.get("files", 0), counters.get("bytes", 0)
        rate, files_rate = self._rates(files, size)
        total_files = max(counters.get("files_found", 0), files)
        total_bytes = max(counters.get("bytes_found", 0), size)
        trouble = ctx.ledger.current_trouble()
        scanning = ctx.place.detector() == "scan"
        limbo = not scanning and ctx.ledger.limbo() > 0
        failures = ctx.progress.failure_count()
        held = ctx.progress.held()
        waits = held.any and (bool(held.question) or not ctx.session.ignore_deletes)
        unsure = ctx.progress.look(unsettled.holds)
        working = (
            busy
            or bool(pending)
            or brick.crawl is not None
            or not brick.complete
            or limbo
            or waits
            or (unsure and not scanning)
        )
        return ProgressSnapshot(
            phase=phase or (Phase.RUNNING if working else Phase.IDLE),
            crawl=self._crawl(brick.crawl is not None or not brick.complete, pending[0].end_ns if pending else None),
            state=state or ctx.resting() or (f"trouble: {trouble[1]}" if trouble else held.question),
            scanned=counters.get("scanned", 0),
            entries_done=counters.get("entries", 0),
            files_done=files, files_total=total_files, bytes_done=size, bytes_total=total_bytes,
            bytes_sent=counters.get("bytes_sent", 0),
            rate_bytes_s=rate, files_s=files_rate,
            eta_s=self._eta(total_bytes - size, rate, total_files - files, files_rate),
            lag_s=self._lag(brick, pending, working=working, behind=scanning or failures > 0 or waits or unsure),
            failures=failures,
            skipped=ctx.progress.skip_count(),
            stime=brick.stime_ns / 1e9 if brick.stime_ns else None,
        )  # fmt: skip

    def _crawl(self, hybrid: bool, oldest_end_ns: int | None) -> Crawl:
        if hybrid:
            return Crawl.HYBRID
        if oldest_end_ns is not None and oldest_end_ns < self._started_ns:
            return Crawl.HISTORY
        return Crawl.NONE if self._ctx.place.detector() == "scan" else Crawl.CHANGELOG

    def _lag(self, brick: Brick, pending: list[SegmentInfo], *, working: bool, behind: bool) -> float | None:
        """Age of the oldest change that may not be on the secondary; None before there ever was a mark.

        ``behind``: something failed, or changes are not recorded: then only the mark says what is there.
        """
        if not brick.marked:
            return None
        if behind:
            return self._lag_by_mark()
        now_ns = time.time_ns()
        if pending:
            since = pending[0].start_ns
        elif working:
            since = brick.stime_ns
        else:
            # Nothing is known to be missing; but what nobody records (any more) nobody knows of.
            last = self._ctx.store.last_closed()
            quiet = last is not None and now_ns - last.end_ns < _RECORDED_NS
            since = now_ns if last is None or quiet else last.end_ns
        return max(0.0, (now_ns - since) / 1e9)

    def _lag_by_mark(self) -> float | None:
        brick = self._ctx.progress.brick()
        return max(0.0, time.time() - brick.stime_ns / 1e9) if brick.marked else None

    def _rates(self, files: int, size: int) -> tuple[float, float]:
        now = time.monotonic()
        self._recent.append((now, files, size))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        then, old_files, old_size = self._recent[0]
        span = now - then
        if span <= 0:
            return 0.0, 0.0
        return max(0.0, (size - old_size) / span), max(0.0, (files - old_files) / span)

    @staticmethod
    def _eta(bytes_left: int, rate: float, files_left: int, files_rate: float) -> float | None:
        if bytes_left <= 0 and files_left <= 0:
            return 0.0
        if (bytes_left > 0 and rate <= 0) or (files_left > 0 and files_rate <= 0):
            return None
        return max(
            bytes_left / rate if bytes_left > 0 else 0.0, files_left / files_rate if files_left > 0 else 0.0
        )


def log_failures(ctx: Context, most: int = 20) -> list[str]:
    """One line for each failure, the oldest first."""
    lines = [f"{failure.step}: {failure.error}" for failure in ctx.progress.failures(most)]
    more = ctx.progress.failure_count() - len(lines)
    return [*lines, f"and {more} more"] if more > 0 else lines
