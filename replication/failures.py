"""What could not be replicated: one row for each thing, until it is. The oldest of them holds the mark.

They stand in the progress database (progress.py), whose transactions these functions are part of.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

SCHEMA = """
-- What could not be replicated, until it is. first_ns bounds the mark.
CREATE TABLE IF NOT EXISTS failure (
    key TEXT PRIMARY KEY,            -- step and gfid or path: one row for one thing that fails
    step TEXT NOT NULL, gfid TEXT, path TEXT, code TEXT NOT NULL, error TEXT NOT NULL,
    tries INTEGER NOT NULL, first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, next_ns INTEGER NOT NULL
) WITHOUT ROWID;
"""
_COLUMNS = "step, gfid, path, code, error, tries, first_ns, last_ns"
_FIRST_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One thing that could not be replicated. Times are nanoseconds since the epoch."""

    step: str
    gfid: str | None
    path: str | None
    code: str
    error: str
    tries: int = 1
    first_ns: int = 0
    last_ns: int = 0

    @property
    def key(self) -> str:
        return f"{self.step}:{self.gfid or self.path}"


def record(db: sqlite3.Connection, failed: Iterable[Failure], resolved: Iterable[str], since_ns: int) -> None:
    """Add or renew failures, and drop those whose keys are resolved; see Progress.record."""
    now = time.time_ns()
    db.executemany("DELETE FROM failure WHERE key = ?", ((key,) for key in resolved))
    for failure in failed:
        first = failure.first_ns or since_ns or now
        db.execute(
            "INSERT INTO failure VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "code = excluded.code, error = excluded.error, path = coalesce(excluded.path, path), "
            "tries = tries + 1, last_ns = excluded.last_ns",
            (failure.key, failure.step, failure.gfid, failure.path, failure.code, failure.error,
             first, now, now + _FIRST_S * 10**9),
        )  # fmt: skip


def oldest(db: sqlite3.Connection, limit: int) -> list[Failure]:
    return _failures(db.execute(f"SELECT {_COLUMNS} FROM failure ORDER BY first_ns LIMIT ?", (limit,)))


def _failures(rows: Iterable[tuple[object, ...]]) -> list[Failure]:
    return [Failure(**dict(zip(_COLUMNS.split(", "), row, strict=True))) for row in rows]  # type: ignore[arg-type]


def keys(db: sqlite3.Connection, limit: int) -> set[str]:
    """Of the oldest, if there are more."""
    rows = db.execute("SELECT key FROM failure ORDER BY first_ns LIMIT ?", (limit,))
    return {key for (key,) in rows}


def count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM failure").fetchone()[0])


def due(db: sqlite3.Connection, limit: int, longest_s: float, *, at_once: bool) -> list[Failure]:
    """Those whose next try is due, all with ``at_once``; their next one is put off, doubling up to ``longest_s``."""
    now = time.time_ns()
    found = _failures(
        db.execute(
            f"SELECT {_COLUMNS} FROM failure WHERE next_ns <= ? OR ? ORDER BY next_ns LIMIT ?",
            (now, at_once, limit),
        ).fetchall()
    )
    for failure in found:
        wait = min(_FIRST_S * 2 ** min(failure.tries, 20), longest_s)
        db.execute("UPDATE failure SET next_ns = ? WHERE key = ?", (now + int(wait * 10**9), failure.key))
    return found
