"""Drills that were held: the reports of the last ones, and when the next is due.

They stand in the progress database (progress.py), whose transactions these functions are part of.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from replication import reading

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS drill (
    id INTEGER PRIMARY KEY,
    own INTEGER NOT NULL,            -- 1: with the session's own check, so that it tells of the session's health
    report TEXT NOT NULL             -- JSON (docs/scripting.md)
);
-- When a drill was begun last by itself, or first thought of.
CREATE TABLE IF NOT EXISTS drill_plan (one INTEGER PRIMARY KEY CHECK (one = 1), tried_ns INTEGER NOT NULL);
"""
KEPT = 100


def keep(db: sqlite3.Connection, report: dict[str, Any], *, own: bool) -> None:
    """Note a drill that came to its end; the oldest go."""
    db.execute("INSERT INTO drill (own, report) VALUES (?, ?)", (own, json.dumps(report)))
    db.execute("DELETE FROM drill WHERE id <= (SELECT max(id) FROM drill) - ?", (KEPT,))


def last(db: sqlite3.Connection, *, own: bool = False) -> dict[str, Any] | None:
    """The report of the last one. ``own``: of the last with the session's own check."""
    row = db.execute(
        "SELECT report FROM drill WHERE own >= ? ORDER BY id DESC LIMIT 1", (int(own),)
    ).fetchone()
    return None if row is None else json.loads(row[0])


def tried_ns(db: sqlite3.Connection) -> int | None:
    """When one was begun last by itself."""
    found = db.execute("SELECT tried_ns FROM drill_plan").fetchone()
    return None if found is None else int(found[0])


def try_at(db: sqlite3.Connection, now_ns: int) -> None:
    """One begins."""
    db.execute("INSERT OR REPLACE INTO drill_plan VALUES (1, ?)", (now_ns,))


def read(path: Path) -> dict[str, Any] | None:
    """The last report in a progress database, whoever else uses it; None where there is no such thing."""
    return reading.ask(path, last, None)
