"""The ledger: which batches are open and which units of them remain. Kept in Redis, and expendable.

A batch is opened by the crawler alone, in order, before anything of it is enqueued. Each unit, when
done, removes itself and adds the units that it discovered in one atomic step (ledger.lua); whoever
empties the oldest batch moves the front past it. Chords, sweepers and twins may all ask again.
"""

from __future__ import annotations

import json
import os
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.servers import Servers, of_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from replication.failures import Failure

_STALE, _OUT_OF_ORDER = -1, -2
_TOKEN = 8  # characters


class StaleFence(Exception):
    """The caller's epoch is over, or the ledger is gone: stop, somebody newer is at work."""


class OutOfOrder(Exception):
    """A batch number that is not the next one: somebody else opened it."""


class Standing(NamedTuple):
    """``done``: the unit was there and is removed now. Batches up to ``front`` are complete."""

    done: bool
    front: int
    opened: int


class OpenBatch(NamedTuple):
    """One batch as the ledger has it. ``idle_s``: seconds since anything of it moved."""

    number: int
    manifest: dict[str, Any]
    idle_s: float
    boot: str
    rebooted: bool
    units: list[str]
    units_done: bool  # whether any unit of it was done: if not, nothing needs to be made durable


def connect(where: Servers | str, timeout_s: float | None = None) -> redis.Redis:
    """A client for the Redis of the ledgers: that of these servers, or the one at an address.

    With ``timeout_s`` a Redis that does not answer is an error after that time, and is not asked again.
    """
    servers = of_url(where) if isinstance(where, str) else where
    return servers.client(timeout_s)


class Ledger:
    """The ledger of one session's brick, on behalf of one epoch."""

    def __init__(self, client: redis.Redis, instance: str) -> None:
        self.redis = client
        self.prefix = f"seamark:{{{instance}}}:"
        self._script = client.register_script(files("tasks").joinpath("ledger.lua").read_text())

    def _run(self, operation: str, epoch: int, batch: int, *rest: str | bytes) -> Standing:
        now = str(time.time_ns() // 1_000_000)
        status, front, opened = self._script(keys=[self.prefix], args=[operation, epoch, batch, now, *rest])
        if status == _STALE:
            raise StaleFence
        if status == _OUT_OF_ORDER:
            raise OutOfOrder
        return Standing(status == 1, front, opened)

    def begin_epoch(self, epoch: int) -> None:
        """Forget everything of earlier epochs; from now on only ``epoch`` is served.

        Locks and the count of requests stay: whoever holds one goes on holding it. So do signs of life.
        """
        pipe = self.redis.pipeline(transaction=True)
        kept = tuple(f"{self.prefix}{kind}".encode() for kind in ("lock:", "asked:", "alive"))
        for key in self.redis.scan_iter(match=self.prefix + "*", count=1000):
            if not key.startswith(kept):
                pipe.delete(key)
        self._script(keys=[self.prefix], args=["begin", epoch, 0, ""], client=pipe)
        pipe.execute()

    def erase(self) -> None:
        """Forget everything: the session is deleted."""
        for key in self.redis.scan_iter(match=self.prefix + "*", count=1000):
            self.redis.delete(key)

    def fence(self) -> int | None:
        """The epoch that is served; None when the ledger is gone, or may be an older state of itself."""
        served, _, _ = self._script(keys=[self.prefix], args=["fence", "", 0, ""])
        return int(served) or None

    def standing(self, epoch: int) -> Standing:
        """Where the front is. Raises StaleFence."""
        return self._run("settle", epoch, 0, "", "", "", "", "")

    def open(
        self, epoch: int, batch: int, manifest: dict[str, Any], units: Mapping[str, str | bytes]
    ) -> Standing:
        """Open the next batch. Raises StaleFence, OutOfOrder."""
        return self._run("open", epoch, batch, json.dumps(manifest), *_with_tokens(units))

    def settle(
        self,
        epoch: int,
        batch: int,
        unit: str,
        *,
        token: str = "",
        boot: str = "",
        failures: list[Failure] | None = None,
        resolved: Mapping[str, int] | None = None,
        found: Mapping[str, str | bytes] | None = None,
    ) -> Standing:
        """A unit is done and found others: one step. ``done`` is False when a twin was first.

        ``token``: of the payload that was done; another one of the same name is left alone. Raises StaleFence.
        """
        bad = json.dumps([_plain(failure) for failure in failures]) if failures else ""
        good = json.dumps(list(resolved.items())) if resolved else ""
        return self._run("settle", epoch, batch, unit, boot, bad, good, token, *_with_tokens(found or {}))

    def forget(self, epoch: int, upto: int) -> None:
        """Drop what is kept of completed batches. Raises StaleFence."""
        self._run("forget", epoch, upto)

    def forgotten(self) -> int:
        """Batches up to here are done with and dropped."""
        value: bytes | None = self.redis.hget(self.prefix + "ledger", "forgotten")  # type: ignore[assignment]
        return int(value or 0)

    def opened(self) -> int:
        """The last batch that was opened."""
        value: bytes | None = self.redis.hget(self.prefix + "ledger", "opened")  # type: ignore[assignment]
        return int(value or 0)

    def sent(self) -> int | None:
        """The last changelog position with records of which this epoch opened a batch; None: none yet."""
        value: bytes | None = self.redis.hget(self.prefix + "ledger", "sent")  # type: ignore[assignment]
        return int(value) if value else None

    def once_in(self, seconds: int, what: str) -> bool:
        """True at most once in so many seconds, over all processes."""
        return bool(self.redis.set(f"{self.prefix}once:{what}", 1, nx=True, ex=seconds))

    def ask(self, what: str) -> None:
        """Count a request for something that is done by one process at a time."""
        self.redis.incr(f"{self.prefix}asked:{what}")

    def asked(self, what: str) -> int:
        """How often it was asked for."""
        value: bytes | None = self.redis.get(f"{self.prefix}asked:{what}")  # type: ignore[assignment]
        return int(value or 0)

    def try_lock(self, what: str, seconds: int) -> bool:
        """A lock for efficiency only: order is kept by the fence, by batch numbers, and by durable progress."""
        return bool(self.redis.set(f"{self.prefix}lock:{what}", 1, nx=True, ex=seconds))

    def unlock(self, what: str) -> None:
        self.redis.delete(f"{self.prefix}lock:{what}")

    def payload(self, batch: int, unit: str) -> bytes | None:
        """What a unit is asked to do; None when it is done or forgotten."""
        return self.payload_and_token(batch, unit)[0]

    def payload_and_token(self, batch: int, unit: str) -> tuple[bytes | None, str]:
        """The same, and by what ``settle`` knows that this is what was done."""
        value: bytes | None = self.redis.hget(f"{self.prefix}units:{batch}", unit)  # type: ignore[assignment]
        return (value[_TOKEN:], value[:_TOKEN].decode()) if value is not None else (None, "")

    def put_found(self, epoch: int, batch: int, unit: str, text: str) -> None:
        """Keep what the first step of a unit found for its second, for a day."""
        key = f"{self.prefix}found:{epoch}:{batch}:{unit}"
        self.redis.set(key, text, ex=86400)

    def take_found(self, epoch: int, batch: int, unit: str) -> str | None:
        value: bytes | None = self.redis.get(f"{self.prefix}found:{epoch}:{batch}:{unit}")  # type: ignore[assignment]
        return value.decode() if value is not None else None

    def drop_found(self, epoch: int, batch: int, unit: str) -> None:
        self.redis.delete(f"{self.prefix}found:{epoch}:{batch}:{unit}")

    def claim(self, unit: str) -> None:
        """A sign of life of the task that does this unit."""
        self.redis.hset(self.prefix + "claims", unit, int(time.time() * 1000))

    def started(self, unit: str) -> int:
        """Note that a unit is begun; how often it was, since it last came to an end of any kind."""
        return int(self.redis.hincrby(self.prefix + "starts", unit, 1))

    def forget_starts(self, unit: str) -> None:
        self.redis.hdel(self.prefix + "starts", unit)

    def claims(self) -> dict[str, float]:
        """Seconds since the last sign of life, by unit."""
        now = time.time() * 1000
        found: dict[bytes, bytes] = self.redis.hgetall(self.prefix + "claims")  # type: ignore[assignment]
        return {unit.decode(): (now - int(at)) / 1000 for unit, at in found.items()}

    def batch(self, number: int) -> OpenBatch | None:
        """One batch, None when it is not known (any more)."""
        pipe = self.redis.pipeline()
        pipe.hgetall(f"{self.prefix}batch:{number}")
        pipe.hkeys(f"{self.prefix}units:{number}")
        row, units = pipe.execute()
        if not row:
            return None
        idle = time.time() - int(row[b"moved"]) / 1000
        return OpenBatch(
            number, json.loads(row[b"manifest"]), idle, row.get(b"boot", b"").decode(), b"rebooted" in row,
            [unit.decode() for unit in units], b"worked" in row,
        )  # fmt: skip

    def reports(self, number: int) -> tuple[list[dict[str, Any]], list[tuple[str, int]]]:
        """Failures, and resolved keys with when they were looked at, that units of this batch reported."""
        bad, good = (
            [
                item
                for text in self.redis.lrange(f"{self.prefix}{kind}:{number}", 0, -1)
                for item in json.loads(text)
            ]
            for kind in ("failures", "resolved")
        )
        return bad, [(key, looked_ns) for key, looked_ns in good]

    # ---- what workers on other hosts are told (tasks/terms.py)

    def tell(self, epoch: int, terms: bytes) -> None:
        """Tell it on behalf of an epoch. Raises StaleFence."""
        self._run("tell", epoch, 0, terms)

    def told(self) -> bytes | None:
        """What was told last in this epoch, None when nothing was."""
        value: bytes | None = self.redis.get(self.prefix + "terms")  # type: ignore[assignment]
        return value

    # ---- what waits in limbo on the secondary; unknown counts as something

    def limbo(self) -> int:
        """How many objects without a name the secondary keeps, as far as is known."""
        value: bytes | None = self.redis.get(self.prefix + "limbo")  # type: ignore[assignment]
        return int(value) if value is not None else 1

    def set_limbo(self, number: int) -> None:
        self.redis.set(self.prefix + "limbo", number)

    # ---- the mark on the two roots

    def published(self) -> int:
        """The mark (ns) that this epoch wrote to both roots last; -1: none yet."""
        value: bytes | None = self.redis.get(self.prefix + "published")  # type: ignore[assignment]
        return int(value) if value is not None else -1

    def set_published(self, stime_ns: int) -> None:
        self.redis.set(self.prefix + "published", stime_ns)

    # ---- signs of life (tasks/alive.py)

    def sign(self, role: str) -> None:
        """Say that a role is alive: its sign is another one than before."""
        self.redis.hincrby(self.prefix + "alive", role, 1)

    def signs(self) -> dict[str, int]:
        """The latest sign of each role. Only that it changes means something."""
        found: dict[bytes, bytes] = self.redis.hgetall(self.prefix + "alive")  # type: ignore[assignment]
        return {role.decode(): int(sign) for role, sign in found.items()}

    # ---- live counters, for people

    def trouble(self, code: str, message: str) -> None:
        """Why work is being given back at the moment (secondary full, unreachable, …); shown, then expires."""
        self.redis.set(self.prefix + "trouble", json.dumps([code, message]), ex=30)

    def current_trouble(self) -> tuple[str, str] | None:
        value: bytes | None = self.redis.get(self.prefix + "trouble")  # type: ignore[assignment]
        return tuple(json.loads(value)) if value else None

    def count(self, **amounts: int) -> None:
        """Add to counters (files, bytes, …) that status and progress show."""
        pipe = self.redis.pipeline(transaction=False)
        for name, amount in amounts.items():
            if amount:
                pipe.hincrby(self.prefix + "counters", name, amount)
        pipe.execute()

    def counters(self) -> dict[str, int]:
        found: dict[bytes, bytes] = self.redis.hgetall(self.prefix + "counters")  # type: ignore[assignment]
        return {name.decode(): int(value) for name, value in found.items()}


def _with_tokens(units: Mapping[str, str | bytes]) -> list[str | bytes]:
    """Pairs as the script takes them. Each payload has a token, by which it is known from others of its name."""
    pairs: list[str | bytes] = []
    for name, payload in units.items():
        token = os.urandom(_TOKEN // 2).hex()
        pairs += [name, token.encode() + (payload.encode() if isinstance(payload, str) else payload)]
    return pairs


def _plain(failure: Failure) -> dict[str, Any]:
    return {"step": failure.step, "gfid": failure.gfid, "path": failure.path, "code": failure.code,
            "error": failure.error, "of": failure.of}  # fmt: skip
