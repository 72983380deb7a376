"""How a session did over the last day: one sample every ten seconds, in a file that never grows.

The file is a ring of records of one size. Which one a sample goes to follows from its time alone, so there is
no head to be lost, and what was written before a restart, or a day ago, is told apart by the time in it.
docs/formats.md has the bytes.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from replication.session import SessionDir

STEP_S = 10
KEPT_S = 86_400
SLOTS = KEPT_S // STEP_S
_RECORD = struct.Struct("<dffffQI4x")
SIZE = _RECORD.size * SLOTS  # bytes: 345,600


class Sample(NamedTuple):
    """What went on in one step. Rates are its means, per second; the rest is what it ended with.

    ``time``: its end, in seconds since the epoch. ``lag_s``, ``rpo_s``: None, not known.
    """

    time: float
    bytes_s: float
    files_s: float
    lag_s: float | None
    rpo_s: float | None
    backlog_bytes: int
    failures: int


def path_of(place: SessionDir) -> Path:
    """Where the history of a session is."""
    return place.path / "history"


class History:
    """Writes the history of one session, from its own process."""

    def __init__(self, place: SessionDir) -> None:
        self._path = path_of(place)
        self._since: tuple[float, int, int] | None = (
            None  # monotonic time, bytes and files at the last sample
        )
        self._due = 0.0

    def note(
        self,
        counters: dict[str, int],
        lag_s: float | None,
        rpo_s: float | None,
        backlog_bytes: int,
        failures: int,
    ) -> None:
        """Keep what went on since the last sample, if it is time for one. A disk that refuses it costs the sample only.

        ``counters``: of the session, empty while nobody can tell them.
        """
        now = time.monotonic()
        if now < self._due or not counters:
            return
        done = (now, counters.get("bytes", 0), counters.get("files", 0))
        before, self._since = self._since, done
        self._due = now + STEP_S
        if before is None:
            return
        span = max(now - before[0], 0.001)
        # Counters begin again at 0 with a Redis that was emptied.
        size, files = (max(0, done[at] - before[at]) / span for at in (1, 2))
        self._write(Sample(time.time(), size, files, lag_s, rpo_s, backlog_bytes, failures))

    def _write(self, sample: Sample) -> None:
        packed = _RECORD.pack(
            sample.time, sample.bytes_s, sample.files_s, _or_nan(sample.lag_s), _or_nan(sample.rpo_s),
            max(0, sample.backlog_bytes), min(sample.failures, 0xFFFF_FFFF),
        )  # fmt: skip
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, packed, int(sample.time) // STEP_S % SLOTS * _RECORD.size)
            finally:
                os.close(fd)


def read(place: SessionDir, span_s: float = KEPT_S, now: float | None = None) -> list[Sample]:
    """The samples of the last ``span_s`` seconds, the oldest first; none where there is no history, or no sense in it."""
    until = time.time() if now is None else now
    try:
        with open(path_of(place), "rb") as file:
            raw = file.read(SIZE)
    except OSError:
        return []
    whole = raw[: len(raw) // _RECORD.size * _RECORD.size]
    found = (_sample(*fields) for fields in _RECORD.iter_unpack(whole))
    return sorted(_sound(found, until - span_s, until))


def _sound(samples: Iterable[Sample], since: float, until: float) -> Iterable[Sample]:
    """Those of that time: others are older than the ring, were never written, or are damaged."""
    for sample in samples:
        numbers = (sample.bytes_s, sample.files_s, sample.lag_s or 0.0, sample.rpo_s or 0.0)
        if since < sample.time <= until + STEP_S and all(0 <= number < math.inf for number in numbers):
            yield sample


def _sample(
    at: float, size: float, files: float, lag: float, rpo: float, backlog: int, failures: int
) -> Sample:
    return Sample(
        at, size, files, None if math.isnan(lag) else lag, None if math.isnan(rpo) else rpo, backlog, failures
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
