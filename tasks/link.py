"""A secondary that is out of reach costs one attempt, not one of each task.

The first process that cannot connect says so in Redis; until the time that stands there nobody of this host tries again,
and then one process alone, ever more seldom (exponential back-off with jitter). The others give their work back. As soon
as one of them gets through, all may.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from replication.errors import TemporaryError

if TYPE_CHECKING:
    from replication.errors import SeamarkError
    from tasks.ledger import Ledger

log = logging.getLogger("seamark.link")
_FIRST_S, _LONGEST_S = 1.0, 30.0
_PROBE_S = 60  # a process that tries, and is killed, holds the others up for so long
_FORGET_S = 24 * 3600


class LinkRests(TemporaryError):
    """It was tried a moment ago, in vain. ``code`` is that of the trouble."""

    code = "unreachable"


class Link:
    """The way from one host to the secondary of a session."""

    def __init__(self, ledger: Ledger, host: str) -> None:
        self._ledger = ledger
        self._key = f"{ledger.prefix}link:{host}"
        self._probe = f"link:{host}"
        self._down = False

    def rests(self) -> str | None:
        """Why nobody tries at the moment, None when somebody may. Raises RedisError."""
        words, wait_s = self._state()
        return f"{words}; next try in {wait_s:.0f} s" if wait_s > 0 else None

    def take_turn(self) -> None:
        """Before connecting. Raises LinkRests when it is not this process' turn, RedisError."""
        words, wait_s = self._state()
        self._down = words is not None
        if words is None:
            return
        if wait_s > 0:
            raise LinkRests(f"{words}; next try in {wait_s:.0f} s")
        if not self._ledger.try_lock(self._probe, _PROBE_S):
            raise LinkRests(f"{words}; it is just tried again")

    def works(self) -> None:
        """Connected. Raises RedisError."""
        if self._down:
            self._ledger.redis.delete(self._key)
            self._ledger.unlock(self._probe)
            self._down = False
            log.info("the secondary is within reach again")

    def failed(self, error: SeamarkError) -> None:
        """Not connected: the next try is later. Raises RedisError."""
        redis = self._ledger.redis
        words, wait_s = self._state()
        if words is not None and wait_s > 0:
            return  # many lost it at the same moment, and one has said so
        tries = int(redis.hincrby(self._key, "tries", 1))
        delay = min(_FIRST_S * 2 ** min(tries - 1, 10), _LONGEST_S) * random.uniform(0.5, 1)
        until = self._clock() + delay
        redis.hset(self._key, mapping={"until": repr(until), "words": error.message})
        redis.expire(self._key, _FORGET_S)
        self._ledger.unlock(self._probe)
        log.warning("%s; next try in %.0f s", error.message, delay)

    def _state(self) -> tuple[str | None, float]:
        """What is wrong (None: nothing is known to be), and for how many seconds nobody tries."""
        row: dict[bytes, bytes] = self._ledger.redis.hgetall(self._key)  # type: ignore[assignment]
        if b"until" not in row:
            return None, 0.0
        return row[b"words"].decode(errors="replace"), float(row[b"until"]) - self._clock()

    def _clock(self) -> float:
        """Redis' own: those of two hosts may differ. Seconds."""
        seconds, micro = self._ledger.redis.time()
        return float(seconds) + float(micro) / 1e6
