"""What a person has decided to do without: failures that hold the mark no more. Each is recorded for ever.

A skip covers one thing (a key, as failures.py has it) as long as it fails for the same reason. If it fails for
another one, that is a failure again; if it comes through, the skip is over.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replication import columns

if TYPE_CHECKING:
    import sqlite3

SCHEMA = """
-- What a person has skipped. Rows stay; ended_ns is NULL while a skip is in force.
CREATE TABLE IF NOT EXISTS skip (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL, step TEXT NOT NULL, gfid TEXT, path TEXT, code TEXT NOT NULL, error TEXT NOT NULL,
    tries INTEGER NOT NULL, first_ns INTEGER NOT NULL,
    seen_ns INTEGER NOT NULL,        -- when it failed last
    skipped_ns INTEGER NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
    ended_ns INTEGER, ended TEXT     -- replicated: it came through; withdrawn: by a person; failed: for another reason
);
CREATE UNIQUE INDEX IF NOT EXISTS skip_in_force ON skip (key) WHERE ended_ns IS NULL;
"""
REPLICATED, WITHDRAWN, FAILED = "replicated", "withdrawn", "failed"
_COLUMNS = (
    "step, gfid, path, code, error, tries, first_ns, seen_ns, skipped_ns, who, why, ended_ns, ended, key"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """One decision. Times are nanoseconds since the epoch; ``ended_ns`` is None while it is in force."""

    step: str
    gfid: str | None
    path: str | None
    code: str
    error: str
    tries: int
    first_ns: int
    seen_ns: int
    skipped_ns: int
    who: str
    why: str
    ended_ns: int | None
    ended: str | None
    key: str


def begin(db: sqlite3.Connection, key: str | bytes | None, *, who: str, why: str, now_ns: int) -> int:
    """Skip the failure of this key; 0 if there is none."""
    return db.execute(
        "INSERT INTO skip SELECT NULL, key, step, gfid, path, code, error, tries, first_ns, last_ns, ?, ?, ?, NULL, NULL "
        "FROM failure WHERE key = ?",
        (now_ns, who, why, key),
    ).rowcount


def covers(db: sqlite3.Connection, key: str, code: str, now_ns: int) -> bool:
    """Whether a failure is skipped. It is noted; where the reason is another one by now the skip ends."""
    row = db.execute(
        "SELECT id, code FROM skip WHERE key = ? AND ended_ns IS NULL", (columns.encode(key),)
    ).fetchone()
    if row is None:
        return False
    if row[1] == code:
        db.execute("UPDATE skip SET seen_ns = ?, tries = tries + 1 WHERE id = ?", (now_ns, row[0]))
        return True
    end(db, key, FAILED, now_ns)
    return False


def end(db: sqlite3.Connection, key: str, how: str, now_ns: int) -> None:
    """The skip of this key, if there is one, is over."""
    db.execute(
        "UPDATE skip SET ended_ns = ?, ended = ? WHERE key = ? AND ended_ns IS NULL",
        (now_ns, how, columns.encode(key)),
    )


def end_looked_at(db: sqlite3.Connection, crawl_ns: int) -> None:
    """All names and attributes were looked at since ``crawl_ns``: what did not fail then has come through."""
    db.execute(
        "UPDATE skip SET ended_ns = ?, ended = ? "
        "WHERE ended_ns IS NULL AND step <> 'data' AND max(seen_ns, skipped_ns) < ?",
        (time.time_ns(), REPLICATED, crawl_ns),
    )


def keys(db: sqlite3.Connection) -> set[str]:
    """Of what is skipped at the moment."""
    return {str(columns.decode(key)) for (key,) in db.execute("SELECT key FROM skip WHERE ended_ns IS NULL")}


def of(db: sqlite3.Connection, *, ended: bool) -> list[Skip]:
    """All that are in force, and those that are over as well if ``ended``; the oldest first."""
    names = _COLUMNS.split(", ")
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM skip WHERE ended_ns IS NULL OR ? ORDER BY skipped_ns, id", (ended,)
    )
    return [Skip(**dict(zip(names, map(columns.decode, row), strict=True))) for row in rows]  # type: ignore[arg-type]


def count(db: sqlite3.Connection) -> int:
    """How many are in force."""
    return int(db.execute("SELECT count(*) FROM skip WHERE ended_ns IS NULL").fetchone()[0])
