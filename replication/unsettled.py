"""What may have been missed by a look, because it moved meanwhile; the mark stays before it.

A walk through the tree comes to a name, and what was there has moved. Nothing is known to be missing, and there is a record of
the move or there will be. So it is no failure, but the mark waits. Two things are noted:

- a directory that was to be listed and was not there, by its gfid: until it was listed, or is gone;
- a moment, until which something may have moved to where a walk had been already: until everything recorded by then is applied.

Where somebody may have left directories unlisted and said nothing, that is noted, and they are asked of the secondary.

In the progress database (progress.py), whose transactions these functions are part of. What to do is decided in scheduler/settle.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from replication import marking

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

SCHEMA = """
CREATE TABLE IF NOT EXISTS unsettled (
    id INTEGER PRIMARY KEY,
    gfid TEXT UNIQUE,                -- a directory that is to be listed; '': all that are unlisted; NULL: a moment
    since_ns INTEGER NOT NULL,       -- what was missed may be as old as this
    upto INTEGER,                    -- the changelog position that has to be applied first; NULL: not asked for yet
    tries INTEGER NOT NULL,          -- how often the directory was looked for
    again_ns INTEGER NOT NULL        -- and when it may be again
);
"""
ALL = ""
_FIRST_S, _LONGEST_S = 1, 30
_ADD = (
    "INSERT INTO unsettled (gfid, since_ns, tries, again_ns) VALUES (?, ?, 0, 0) "
    "ON CONFLICT (gfid) DO UPDATE SET since_ns = min(since_ns, excluded.since_ns), upto = NULL"
)


class Unsettled(NamedTuple):
    """One row; see the schema."""

    id: int
    gfid: str | None
    since_ns: int
    upto: int | None
    tries: int
    again_ns: int


def miss(db: sqlite3.Connection, gfids: Iterable[bytes], since_ns: int) -> None:
    """These directories were to be listed, and not where they were looked for. What is in them may be as old as ``since_ns``."""
    db.executemany(_ADD, [(gfid.hex(), since_ns) for gfid in gfids])


def doubt(db: sqlite3.Connection, since_ns: int) -> None:
    """Something that may be as old as ``since_ns`` may have moved until now to where it was not looked for, or have been left unlisted."""
    db.execute(_ADD, (ALL, since_ns))


def doubted(db: sqlite3.Connection, row: Unsettled, gfids: Iterable[bytes]) -> None:
    """All that is unlisted is known now: these directories."""
    miss(db, gfids, row.since_ns)
    db.execute("UPDATE unsettled SET gfid = NULL, upto = NULL WHERE id = ?", (row.id,))


def since_ns(db: sqlite3.Connection) -> int:
    """How old may be what an open crawl misses: everything until the front is there, once a crawl was completed."""
    (since,) = db.execute(
        "SELECT CASE complete WHEN 1 THEN front_ns ELSE stime_ns END + 1 FROM brick"
    ).fetchone()
    return int(since)


def rows(db: sqlite3.Connection) -> list[Unsettled]:
    return [
        Unsettled(*row)
        for row in db.execute("SELECT id, gfid, since_ns, upto, tries, again_ns FROM unsettled")
    ]


def holds(db: sqlite3.Connection) -> bool:
    """Whether the mark waits for any."""
    return db.execute("SELECT 1 FROM unsettled LIMIT 1").fetchone() is not None


def wait_for(db: sqlite3.Connection, asked: Iterable[Unsettled], position: int) -> None:
    """Where the changelog stands, asked after these were noted."""
    db.executemany(
        "UPDATE unsettled SET upto = ? WHERE id = ? AND upto IS NULL", [(position, row.id) for row in asked]
    )


def look_again(db: sqlite3.Connection, missed: Iterable[Unsettled]) -> None:
    """These directories are to be looked for again, each time later."""
    now = time.time_ns()
    for row in missed:
        wait = min(_FIRST_S * 2**row.tries, _LONGEST_S)
        db.execute(
            "UPDATE unsettled SET upto = NULL, tries = tries + 1, again_ns = ? WHERE id = ? AND upto IS ?",
            (now + wait * 10**9, row.id, row.upto),
        )


def listed(db: sqlite3.Connection, found: Iterable[Unsettled], position: int) -> None:
    """These directories are listed, or gone: what was found in them is there when this position is applied."""
    db.executemany(
        "UPDATE unsettled SET gfid = NULL, upto = ? WHERE id = ? AND upto IS ?",
        [(position, row.id, row.upto) for row in found],
    )


def applied(db: sqlite3.Connection, front: int) -> None:
    """Everything recorded up to ``front`` is applied: of the moments until then nothing is missing."""
    db.execute("DELETE FROM unsettled WHERE gfid IS NULL AND upto <= ?", (front,))
    marking.move(db)


def scanned(db: sqlite3.Connection, found: Iterable[Unsettled] = ()) -> None:
    """Nobody records what moves: what is left is what a scan knows that it missed, without ``found``."""
    db.execute("DELETE FROM unsettled WHERE gfid IS NULL OR gfid = ?", (ALL,))
    db.executemany("DELETE FROM unsettled WHERE id = ?", [(row.id,) for row in found])
    marking.move(db)


def positions_lost(db: sqlite3.Connection) -> None:
    """The changelog is another one."""
    db.execute("UPDATE unsettled SET upto = NULL")
