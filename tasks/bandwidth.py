"""Bandwidth: what a session, and the whole fleet, may send a second, shared by all processes through Redis.

Rates follow the timetables of the settings, and may change while something is being sent. With Redis away
nothing is limited: it is back within seconds, and nobody should wait for it here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING

import redis

from replication.quantities import Timetable
from replication.windows import zone
from tasks.fleet import data_processes

if TYPE_CHECKING:
    from tasks.context import Context

_FLEET = "seamark:fleet:bandwidth"
_BURST_S = 0.5
_SLICE_S = 0.5  # a sign of life, and a look at what the limit is by now
_FLEET_EVERY_S = 2.0


def publish_fleet_limit(client: redis.Redis, text: str) -> None:
    """Tell all workers of this broker what they may send together; an empty text: as much as they like."""
    if text:
        client.set(_FLEET, text)
    else:
        client.delete(_FLEET)


class Bandwidth:
    """The limits of one session, in one process."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._redis: redis.Redis = ctx.ledger.redis
        self._script = self._redis.register_script(files("tasks").joinpath("bandwidth.lua").read_text())
        self._fleet: Timetable | None = None
        self._fleet_until = 0.0

    def spend(self, amount: int, alive: Callable[[], object] = lambda: None) -> None:
        """Wait until ``amount`` bytes may be sent. ``alive`` is called while waiting."""
        until = time.monotonic() + self.reserve(amount)
        while (left := until - time.monotonic()) > 0:
            alive()
            time.sleep(min(left, _SLICE_S))

    def reserve(self, amount: int) -> float:
        """Take the right to send so many bytes; seconds to wait before making use of it."""
        prefix = self._ctx.ledger.prefix
        now = datetime.now(zone(self._ctx.session.schedule.timezone))
        try:
            waits = [
                self._wait(f"{prefix}bandwidth", amount, self._ctx.session.bandwidth.rate_at(now)),
                self._wait(f"{_FLEET}:spent", amount, self._fleet_rate(now)),
            ]
        except redis.RedisError:
            return 0.0
        return max(waits)

    def share(self) -> int | None:
        """Bytes a second for one of the session's data tasks, if a program must be told before it starts; None: any."""
        now = datetime.now(zone(self._ctx.session.schedule.timezone))
        try:
            rates = [self._ctx.session.bandwidth.rate_at(now), self._fleet_rate(now)]
            known = [rate for rate in rates if rate is not None]
            sharers = (
                max(self._ctx.session.jobs, data_processes(self._redis, self._ctx.fleet)) if known else 1
            )
        except redis.RedisError:
            return None
        return max(1, min(known) // sharers) if known else None

    def limited(self) -> bool:
        """Whether there is any limit at the moment."""
        now = datetime.now(zone(self._ctx.session.schedule.timezone))
        try:
            return self._ctx.session.bandwidth.rate_at(now) is not None or self._fleet_rate(now) is not None
        except redis.RedisError:
            return False

    def _wait(self, key: str, amount: int, rate: int | None) -> float:
        if rate is None:
            return 0.0
        return int(self._script(keys=[key], args=[amount, rate, _BURST_S])) / 1e6

    def _fleet_rate(self, now: datetime) -> int | None:
        if time.monotonic() >= self._fleet_until:
            text: bytes | None = self._redis.get(_FLEET)  # type: ignore[assignment]
            self._fleet = Timetable.parse(text.decode()) if text else None
            self._fleet_until = time.monotonic() + _FLEET_EVERY_S
        return self._fleet.rate_at(now) if self._fleet is not None else None
