"""What the primary's side remembers of snapshots: which checkpoint has one, and why the last try failed.

It stands in the progress database (progress.py), whose transactions these functions are part of. The snapshots themselves,
and how long they are kept, are the secondary's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from replication import checkpoints

if TYPE_CHECKING:
    import sqlite3

    from replication.checkpoints import Checkpoint

SCHEMA = """
-- Checkpoints that are asked for by themselves: the last of them.
CREATE TABLE IF NOT EXISTS checkpoint_plan (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    asked_ns INTEGER NOT NULL, checkpoint INTEGER NOT NULL
);
-- Snapshots of the secondary: one row, while the session takes them.
CREATE TABLE IF NOT EXISTS snapshot (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    checkpoint INTEGER NOT NULL,     -- the last that has one
    name TEXT NOT NULL, taken_ns INTEGER NOT NULL, mark_ns INTEGER NOT NULL,  -- the last that was taken
    tried_ns INTEGER NOT NULL,
    error TEXT NOT NULL              -- why the last try failed; empty: it did not
);
"""
_COLUMNS = "checkpoint, name, taken_ns, mark_ns, tried_ns, error"


class Snapshots(NamedTuple):
    """The row; see the schema. ``name`` empty: none was taken yet."""

    checkpoint: int
    name: str
    taken_ns: int
    mark_ns: int
    tried_ns: int
    error: str


def known(db: sqlite3.Connection) -> Snapshots | None:
    """What is remembered; None: the session takes none."""
    row = db.execute(f"SELECT {_COLUMNS} FROM snapshot").fetchone()
    return None if row is None else Snapshots(*row)


def begin(db: sqlite3.Connection) -> None:
    """From now on the last checkpoint that was reached has a snapshot."""
    db.execute("INSERT OR IGNORE INTO snapshot VALUES (1, 0, '', 0, 0, 0, '')")


def end(db: sqlite3.Connection) -> None:
    """From now on none has."""
    db.execute("DELETE FROM snapshot")


def due(db: sqlite3.Connection) -> Checkpoint | None:
    """The newest checkpoint that was reached and has no snapshot: one for it is one for all before."""
    plan = known(db)
    if plan is None:
        return None
    reached = [
        found for found in checkpoints.of(db) if found.id > plan.checkpoint and found.reached_ns is not None
    ]
    return reached[-1] if reached else None


def taken(db: sqlite3.Connection, checkpoint: int, record: dict[str, Any]) -> None:
    """A checkpoint has a snapshot: as the secondary's record says."""
    db.execute(
        "UPDATE snapshot SET checkpoint = max(checkpoint, ?), name = ?, taken_ns = ?, mark_ns = ?, tried_ns = ?, error = ''",
        (checkpoint, record["name"], record["taken_ns"], record["mark"]["stime_ns"], time.time_ns()),
    )


def failed(db: sqlite3.Connection, error: str) -> None:
    """It could not be taken."""
    text = error.encode(errors="backslashreplace").decode()
    db.execute("UPDATE snapshot SET tried_ns = ?, error = ?", (time.time_ns(), text))


def last_asked(db: sqlite3.Connection) -> tuple[int, int] | None:
    """When a checkpoint was asked for by itself last (ns), and its number."""
    row = db.execute("SELECT asked_ns, checkpoint FROM checkpoint_plan").fetchone()
    return None if row is None else (int(row[0]), int(row[1]))


def asked(db: sqlite3.Connection, now_ns: int, checkpoint: int) -> None:
    """One was."""
    db.execute("INSERT OR REPLACE INTO checkpoint_plan VALUES (1, ?, ?)", (now_ns, checkpoint))
