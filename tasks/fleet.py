"""The workers of a broker: who they are, and what they do. Each writes a row into Redis with every beat of its heart.

Celery's own heartbeats are events, which only reach who listens at that moment; so the same facts are kept as well,
by the same event loop, and one that does not run any more is known by its silence. Redis' clock is the only one
that is asked. A worker that could not work for a session, because of its mount or its way to the secondary, rests
from it: it stops consuming the session's queues for a while.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import redis
from celery import bootsteps, signals
from celery.worker import state
from msgspec import Meta, Struct

from tasks.ledger import connect

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger("seamark.fleet")
WORKERS = "seamark:fleet:workers"
_RESTS = "seamark:fleet:rests:"
BEAT_S = 2.0
SILENT_S = 10.0  # a worker that wrote nothing for so long is dead, frozen, or cut off
_FORGET_S = 86400.0
_PATIENCE_S = 2.0
_REST_S, _LONGEST_REST_S = 5.0, 60.0
_SHOWN_TASKS, _SHOWN = 64, 200
_ENGINES = ("stream", "rsync", "tar", "bulk")

_me = ""
_troubles: dict[str, int] = {}


class Row(Struct, frozen=True, kw_only=True):
    """One worker as it said itself. Times are seconds since the epoch, on Redis' clock."""

    name: str
    host: str
    pid: int
    role: str
    sessions: tuple[str, ...]
    fleets: tuple[str, ...]
    processes: Annotated[int, Meta(ge=0)]
    now: tuple[str, ...]
    done: int
    since: float
    at: float
    leaving: bool = False
    rests: dict[str, str] = {}

    def state(self, clock: float) -> str:
        """silent: no sign of life for SILENT_S; leaving: it was told to end; busy, idle."""
        if clock - self.at > SILENT_S:
            return "silent"
        if self.leaving:
            return "leaving"
        return "busy" if self.now else "idle"


def _client() -> redis.Redis:
    from tasks.app import servers  # which has this module as a part of its workers

    return connect(servers(), _PATIENCE_S)


class Member(bootsteps.StartStopStep):
    """The part of each Celery worker that writes its row, and lets it rest from sessions."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_options: Any) -> None:
        global _me
        self.name = _me = consumer.hostname
        self._since = 0.0
        self._timer: Any = None
        self._redis: redis.Redis | None = None
        self._resting: dict[str, list[str]] = {}  # fleet: queues that are not consumed at the moment
        signals.worker_shutdown.connect(self._gone, weak=False)

    def start(self, consumer: Any) -> None:
        self._redis = _client()
        self._timer = consumer.timer.call_repeatedly(BEAT_S, self._beat, (consumer,))
        self._beat(consumer)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._redis is not None:
            with suppress(redis.RedisError):
                self._write(consumer, {}, leaving=True)

    def _beat(self, consumer: Any) -> None:
        """Redis may be away, or hang: then nothing is known of us, which is what is shown."""
        with suppress(redis.RedisError):
            rests = self._rests()
            self._rest(consumer, rests)
            self._write(consumer, rests)

    def _write(self, consumer: Any, rests: dict[str, str], *, leaving: bool = False) -> None:
        assert self._redis is not None
        queues = [*consumer.app.amqp.queues.consume_from, *chain(*self._resting.values())]
        fleets = sorted(set(fleets_of(queues)))
        now = clock(self._redis)
        self._since = self._since or now
        row = Row(
            name=self.name, host=socket.gethostname(), pid=os.getpid(), role=role_of(queues),
            sessions=tuple(fleet.rpartition(".")[0] for fleet in fleets), fleets=tuple(fleets),
            processes=getattr(consumer.pool, "num_processes", 0) or 0,
            now=tuple(_says(r) for r in list(state.active_requests)[:_SHOWN_TASKS]),
            done=state.all_total_count[0], since=self._since, at=now, leaving=leaving, rests=rests,
        )  # fmt: skip
        self._redis.hset(WORKERS, self.name, msgspec.json.encode(row))

    def _gone(self, **_: Any) -> None:
        with suppress(redis.RedisError):
            client = _client()
            client.hdel(WORKERS, self.name)
            client.delete(_RESTS + self.name)

    # ---- resting

    def _rests(self) -> dict[str, str]:
        """Sessions that a process of this worker could not work for lately, and why."""
        assert self._redis is not None
        found: dict[bytes, bytes] = self._redis.hgetall(_RESTS + self.name)  # type: ignore[assignment]
        if not found:
            return {}
        now = clock(self._redis)
        rests = {}
        for session, text in found.items():
            until, why = json.loads(text)
            if until > now:
                rests[session.decode()] = why
            else:
                self._redis.hdel(_RESTS + self.name, session)
        return rests

    def _rest(self, consumer: Any, rests: dict[str, str]) -> None:
        for fleet in [fleet for fleet in self._resting if fleet.rpartition(".")[0] not in rests]:
            for queue in self._resting.pop(fleet):
                consumer.add_task_queue(queue)
        queues = list(consumer.app.amqp.queues.consume_from)
        for fleet in set(fleets_of(queues)):
            if fleet.rpartition(".")[0] in rests:
                log.warning("resting from session %s: %s", fleet, rests[fleet.rpartition(".")[0]])
                self._resting[fleet] = [queue for queue in queues if fleets_of([queue]) == [fleet]]
                for queue in self._resting[fleet]:
                    consumer.cancel_task_queue(queue)


def _says(request: Any) -> str:
    """One task at work. Ours have words for people in the place of arguments."""
    words = str(request.kwargsrepr or "")
    return f"{request.name.rpartition('.')[2]} {'' if words.startswith('{') else words}".strip()[:_SHOWN]


def fleets_of(queues: Iterable[str]) -> list[str]:
    """Whose data queues these are; of the workers of a primary's own node, their session's."""
    found = [
        rest for engine, _, rest in (queue.partition(".") for queue in queues) if engine in _ENGINES and rest
    ]
    return found or [fleet for fleet in (os.environ.get("SEAMARK_FLEET", ""),) if fleet]


def role_of(queues: Iterable[str]) -> str:
    return "control" if any(queue.startswith("control.") for queue in queues) else "data"


def rest(client: redis.Redis, session: str, why: str) -> None:
    """Called by a process that could not work for a session: its worker rests from it, longer each time."""
    _troubles[session] = _troubles.get(session, 0) + 1
    wait = min(_REST_S * 2 ** min(_troubles[session] - 1, 10), _LONGEST_REST_S)
    with suppress(redis.RedisError):
        client.hset(_RESTS + _me, session, json.dumps([clock(client) + wait, why]))


def content(session: str) -> None:
    """It could work for it."""
    _troubles.pop(session, None)


def clock(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return int(seconds) + int(microseconds) / 1e6


def rows(client: redis.Redis) -> list[Row]:
    """The workers of this broker, by name. Those that were silent for a day are forgotten. Raises RedisError."""
    found: dict[bytes, bytes] = client.hgetall(WORKERS)  # type: ignore[assignment]
    now = clock(client) if found else 0.0
    known = []
    for name, text in sorted(found.items()):
        try:
            row = msgspec.json.decode(text, type=Row)
        except msgspec.DecodeError:
            continue  # of another version
        if now - row.at > _FORGET_S:
            client.hdel(WORKERS, name)
        else:
            known.append(row)
    return known


def data_processes(client: redis.Redis, fleet: str) -> int:
    """How many processes send data for a session at the same time, on all hosts."""
    now = clock(client)
    return sum(
        row.processes
        for row in rows(client)
        if row.role == "data" and fleet in row.fleets and row.state(now) != "silent"
    )
