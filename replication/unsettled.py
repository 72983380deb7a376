"""Since when something may have been missed by a look, because it moved meanwhile; the mark stays before that.

A walk through the tree comes to a name, and what was there has moved: to where it was before, perhaps. Nothing is known to be
missing, and there is a record of it or there will be. So it is no failure, but the mark waits until everything that was
recorded by then is applied, and until nothing is left that has to be listed. In the progress database (progress.py), whose
transactions these functions are part of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from replication import marking

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

SCHEMA = """
CREATE TABLE IF NOT EXISTS unsettled (
    id INTEGER PRIMARY KEY,
    since_ns INTEGER NOT NULL,       -- what was missed may be as old as this
    upto INTEGER                     -- the changelog position that has to be applied; NULL: nobody has asked for it yet
);
"""


class Unsettled(NamedTuple):
    """One of them; see the schema."""

    id: int
    since_ns: int
    upto: int | None


def note(db: sqlite3.Connection, since_ns: int) -> None:
    """Something that may be as old as ``since_ns`` was not where it was looked for."""
    db.execute("INSERT INTO unsettled (since_ns) VALUES (?)", (since_ns,))


def doubt_mark(db: sqlite3.Connection) -> None:
    """What is newer than the mark may have been looked for where it was no more, by somebody who left nothing behind."""
    db.execute("INSERT INTO unsettled (since_ns) SELECT stime_ns + 1 FROM brick")


def rows(db: sqlite3.Connection) -> list[Unsettled]:
    return [Unsettled(*row) for row in db.execute("SELECT id, since_ns, upto FROM unsettled")]


def wait_for(db: sqlite3.Connection, ids: Iterable[int], position: int) -> None:
    """Where the changelog stands, asked after these were noted."""
    db.executemany("UPDATE unsettled SET upto = ? WHERE id = ?", [(position, each) for each in ids])


def settled(db: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Nothing was missed, or it is there by now: the mark waits for these no more."""
    db.executemany("DELETE FROM unsettled WHERE id = ?", [(each,) for each in ids])
    marking.move(db)


def forget(db: sqlite3.Connection) -> None:
    """Nobody records what moves: a look is what it is."""
    db.execute("DELETE FROM unsettled")
