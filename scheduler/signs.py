"""How long each role of a session has been silent, and whether its processes run at all.

Signs of life come by the ways in which the roles work anyway: workers answer through their own queues
(tasks/alive.py), beat sends, the agent moves its position on. A sign counts when it is another one than
before, so no clock is compared with another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis

from replication.errors import SeamarkError
from scheduler.procfs import Stillness, children, stopped
from scheduler.server_check import check_broker_of
from tasks import alive
from tasks.app import servers

if TYPE_CHECKING:
    from scheduler.supervisor import Service
    from tasks.context import Context

AGENT, REDIS = "agent", "redis"
SILENT_S = 15.0  # beat asks every 5 s, and the agent's position moves on as often
_ASKED_S = 7.0  # silent for so long, beat or a worker may not have asked the others
_IN_REDIS = (alive.BEAT, alive.CONTROL, alive.DATA, alive.SECONDARY)
_WATCH = "watch"  # the one who looks
_BROKER_S = 2.0  # for an answer of the broker
START_S = 30.0  # a role that was just started has this long to give its first sign


def _is_silence(error: redis.RedisError) -> bool:
    """Whether there is no answer, rather than one that refuses."""
    refused = (redis.AuthenticationError, redis.exceptions.AuthorizationError)
    return isinstance(error, redis.ConnectionError | redis.TimeoutError) and not isinstance(error, refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One role at one moment. ``still_s``: for how long its processes have not run at all, while silent."""

    role: str
    pid: int
    silent_s: float
    seen: bool  # whether it ever gave a sign since it was started
    deaths: int = 0  # in a row
    why: str = ""  # how it ended the last time
    stopped: tuple[int, ...] = ()  # processes of it that a signal stopped
    still_s: float = 0.0
    apart: bool = False  # another supervisor runs it

    @property
    def is_silent(self) -> bool:
        return self.silent_s > (SILENT_S if self.seen else START_S)


class Signs:
    """Looks at the roles of one session again and again, from the process that started them."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._last: dict[str, tuple[object, float]] = {}
        self._stillness: dict[str, Stillness] = {}
        self.redis_silent_since: float | None = None
        self.redis_error = ""  # what it says instead of doing what it is asked
        self.broker_error = ""
        self._broker_due = 0.0

    def look(self, services: list[Service], now: float) -> list[Sign]:
        """The roles that are expected to be there. ``now``: time.monotonic()."""
        heard = self._heard(now)
        roles = {service.name: service for service in services if not service.finished}
        if self.redis_silent_since is not None or self._broker_is_away(roles, now):
            self._excuse(_IN_REDIS, now)
        found = []
        # Who is asked after whoever asks: nobody owes a sign that was not asked for.
        for role, asks in (
            (alive.BEAT, (alive.CONTROL, alive.DATA)),
            (alive.CONTROL, (alive.SECONDARY,)),
            (alive.DATA, ()),
        ):
            if role in roles:
                found.append(self._of(roles[role], heard.get(role), now))
                if found[-1].silent_s > _ASKED_S:
                    self._excuse((*asks, alive.SECONDARY), now)
        if AGENT in roles and AGENT in heard:
            if roles[AGENT].pid and stopped(roles[AGENT].pid):
                heard[AGENT] = None  # the position may move without it: another one records
            found.append(self._of(roles[AGENT], heard[AGENT], now))
        if alive.CONTROL in roles:
            at, seen = self._since(
                alive.SECONDARY, heard.get(alive.SECONDARY), roles[alive.CONTROL].started, now
            )
            found.append(Sign(role=alive.SECONDARY, pid=0, silent_s=now - at, seen=seen))
        return found

    def _broker_is_away(self, roles: dict[str, Service], now: float) -> bool:
        """Whether it is the broker that keeps roles silent. It is asked when beat, which sends all the time, is silent."""
        if servers().are_one or alive.BEAT not in roles:
            return False
        _, at = self._last.get(alive.BEAT, (None, 0.0))
        if not self.broker_error and now - max(at, roles[alive.BEAT].not_before) < _ASKED_S:
            return False
        if now >= self._broker_due:
            self._broker_due = now + _ASKED_S
            try:
                check_broker_of(servers(), _BROKER_S)
                self.broker_error = ""
            except SeamarkError as error:
                self.broker_error = error.message
        return bool(self.broker_error)

    def _excuse(self, roles: tuple[str, ...], now: float) -> None:
        """These cannot be judged at the moment: they have all their time from now on."""
        for role in roles:
            self._last[role] = (self._last.get(role, (None, 0.0))[0], now)

    def _heard(self, now: float) -> dict[str, object]:
        heard: dict[str, object] = {}
        try:
            self._ctx.ledger.sign(
                _WATCH
            )  # a replica, or one that is full, answers as long as nothing is written
            heard.update(self._ctx.ledger.signs())
            self.redis_silent_since, self.redis_error = None, ""
        except redis.RedisError as error:
            self.redis_silent_since = self.redis_silent_since or now
            self.redis_error = "" if _is_silence(error) else str(error)
        if self._ctx.place.detector() != "scan":
            last = self._ctx.store.last_closed()
            heard[AGENT] = (last.number, last.end_ns) if last is not None else None
        return heard

    def _of(self, service: Service, sign: object, now: float) -> Sign:
        at, seen = self._since(service.name, sign, max(service.started, service.not_before), now)
        pids = [service.pid, *(children(service.pid) if service.name.startswith("worker") else [])]
        pids = [pid for pid in pids if pid]
        silent = now - at
        still = 0.0
        stillness = self._stillness.setdefault(service.name, Stillness())
        if silent > SILENT_S and pids:
            for_s = stillness.look(pids, now)
            pool = [for_s.get(pid, 0.0) for pid in pids[1:]]
            still = max(for_s.get(service.pid, 0.0), min(pool) if pool else 0.0)
        return Sign(
            role=service.name, pid=service.pid, silent_s=silent, seen=seen, deaths=service.failing, why=service.why,
            stopped=tuple(pid for pid in pids if stopped(pid)), still_s=still,
            apart=service.apart,
        )  # fmt: skip

    def _since(self, role: str, sign: object, began: float, now: float) -> tuple[float, bool]:
        """When a role last gave another sign than before, and whether it did so since it was started."""
        before, at = self._last.get(role, (sign, 0.0))
        if sign is not None and sign != before:
            at = now
        self._last[role] = (sign if sign is not None else before, at)
        return max(at, began), at >= began
