"""Checkpoints: points in the changelog that somebody asked about. Is all up to here on the secondary?

They stand in the progress database, and are judged in the very step that moves the mark, so none is
reached before what it waits for is durable. A checkpoint is reached when the mark has passed its time,
nothing that failed is older, and what proves that the mark means it holds: of one asked for *now*, that the
front has passed the position at which the changelog stood, or that a scan which began after it has ended.
A time that somebody gave is a time, and is as good as the clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from replication import reading

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoint (
    id INTEGER PRIMARY KEY,
    asked_ns INTEGER NOT NULL,       -- when it was asked for
    time_ns INTEGER NOT NULL,        -- everything that changed until then
    by_time INTEGER NOT NULL,        -- 1: that time is all it says
    position INTEGER,                -- where the changelog stood; NULL: not known, a scan has to tell
    crawl TEXT,                      -- the first hybrid crawl that began after it
    crawled INTEGER NOT NULL,        -- 1 once that crawl is complete
    reached_ns INTEGER               -- when it was found to be reached
);
"""
_COLUMNS = "id, asked_ns, time_ns, by_time, position, reached_ns"
KEPT = 100


class Checkpoint(NamedTuple):
    """One of them. Times: nanoseconds since the epoch; ``reached_ns`` None while it is not reached."""

    id: int
    asked_ns: int
    time_ns: int
    by_time: bool
    position: int | None
    reached_ns: int | None


def add(db: sqlite3.Connection, time_ns: int, *, position: int | None, by_time: bool) -> int:
    """Ask about a point, within a transaction. Returns its id; the oldest that were reached go."""
    cursor = db.execute(
        "INSERT INTO checkpoint (asked_ns, time_ns, by_time, position, crawled) VALUES (?, ?, ?, ?, 0)",
        (time.time_ns(), time_ns, by_time, position),
    )
    db.execute(
        "DELETE FROM checkpoint WHERE reached_ns IS NOT NULL AND id <= (SELECT max(id) FROM checkpoint) - ?",
        (KEPT,),
    )
    reach(db)
    return int(cursor.lastrowid or 0)


def reach(db: sqlite3.Connection) -> None:
    """Note which are reached by now: part of each transaction that moves the mark."""
    db.execute(
        "UPDATE checkpoint SET reached_ns = ? FROM brick WHERE reached_ns IS NULL AND brick.complete = 1 "
        "AND brick.stime_ns >= time_ns "
        "AND NOT EXISTS (SELECT 1 FROM failure WHERE first_ns <= time_ns) "
        "AND (by_time OR crawled OR (position IS NOT NULL AND brick.front >= position))",
        (time.time_ns(),),
    )


def untold(db: sqlite3.Connection, published_ns: int) -> bool:
    """Whether the secondary is to know more at once than the mark that it was told, 0: that there is a mark, or that a
    checkpoint is reached.
    """
    return (
        db.execute(
            "SELECT 1 FROM brick WHERE complete = 1 AND stime_ns > 0 AND ?1 = 0 UNION ALL "
            "SELECT 1 FROM checkpoint WHERE reached_ns IS NOT NULL AND time_ns > ?1",
            (published_ns,),
        ).fetchone()
        is not None
    )


def crawl_begun(db: sqlite3.Connection, crawl: str) -> None:
    """A hybrid crawl begins: it looks at everything that was asked about before."""
    db.execute("UPDATE checkpoint SET crawl = ? WHERE crawl IS NULL AND reached_ns IS NULL", (crawl,))


def crawl_ended(db: sqlite3.Connection, crawl: str) -> None:
    """That crawl is complete, and what it found is durable."""
    db.execute("UPDATE checkpoint SET crawled = 1 WHERE crawl = ?", (crawl,))


def crawl_dropped(db: sqlite3.Connection) -> None:
    """The crawl under way is void: the next one counts."""
    db.execute("UPDATE checkpoint SET crawl = NULL WHERE crawled = 0")


def positions_lost(db: sqlite3.Connection) -> None:
    """The changelog is another one: positions in the old one mean nothing."""
    db.execute("UPDATE checkpoint SET position = NULL WHERE reached_ns IS NULL")


def of(db: sqlite3.Connection) -> list[Checkpoint]:
    """All that are kept, the oldest first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM checkpoint ORDER BY id")
    return [
        Checkpoint(number, asked, at, bool(by_time), position, reached)
        for number, asked, at, by_time, position, reached in rows
    ]


def read(path: Path) -> list[Checkpoint]:
    """The checkpoints of a progress database, whoever else uses it; none where there is no such thing."""
    return reading.ask(path, of, [])
