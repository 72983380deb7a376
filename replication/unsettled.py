"""What may have been missed by a look, because it moved meanwhile; the mark stays before it.

A walk through the tree comes to a name, and what was there has moved. Nothing is known to be missing, and there is a record of
the move or there will be. So it is no failure, but the mark waits. Two things are noted:

- a directory that was to be listed and was not there, by its gfid: until it was listed, or is gone;
- a moment, until which something may have moved to where a walk had been already: until everything recorded by then is applied.

Where somebody may have left directories unlisted and said nothing, that is noted, and they are asked of the secondary.

In the progress database (progress.py), whose transactions these functions are part of. What to do is decided in scheduler/settle.py.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from replication import marking

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

SCHEMA = """
CREATE TABLE IF NOT EXISTS unsettled (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never that of another one
    gfid TEXT UNIQUE,                -- a directory that is to be listed; '': all that are unlisted; NULL: a moment
    since_ns INTEGER NOT NULL,       -- what was missed may be as old as this
    upto INTEGER,                    -- the changelog position that has to be applied first; NULL: not asked for yet
    tries INTEGER NOT NULL,          -- how often the directory was looked for
    again_ns INTEGER NOT NULL,       -- and when it may be again
    path BLOB                        -- where it was last: what goes wrong below it is as old as it
);
CREATE INDEX IF NOT EXISTS unsettled_path ON unsettled(path);
"""
ALL = ""
_FIRST_S, _LONGEST_S = 1, 30
_ADD = (
    "INSERT INTO unsettled (gfid, since_ns, path, tries, again_ns) VALUES (?, ?, ?, 0, 0) "
    "ON CONFLICT (gfid) DO UPDATE SET since_ns = min(since_ns, excluded.since_ns), upto = NULL, "
    "path = coalesce(excluded.path, path)"
)


class Unsettled(NamedTuple):
    """One row; see the schema."""

    id: int
    gfid: str | None
    since_ns: int
    upto: int | None
    tries: int
    again_ns: int
    path: bytes | None


def miss(
    db: sqlite3.Connection,
    directories: Iterable[tuple[bytes, bytes | None]],
    since_ns: int,
    *,
    strayed: bool = False,
) -> None:
    """Directories (gfid, path) were to be listed, and were not there. What is in them may be as old as ``since_ns``.

    ``strayed``: so may what is in a directory that nobody has seen yet, by whatever name it has.
    """
    if strayed:
        db.execute("INSERT INTO unsettled (since_ns, tries, again_ns) VALUES (?, 0, 0)", (since_ns,))
    db.executemany(_ADD, [(gfid.hex(), oldest(db, path, since_ns), path) for gfid, path in directories])


def oldest(db: sqlite3.Connection, path: bytes | None, since_ns: int) -> int:
    """How old may be what is at ``path``: as old as a directory above it that was missed, and is looked at only now."""
    if path is None or not holds(db):
        return since_ns
    above = [path]
    while above[-1]:
        above.append(os.path.dirname(above[-1]))
    marks = ",".join("?" * len(above))
    (found,) = db.execute(f"SELECT min(since_ns) FROM unsettled WHERE path IN ({marks})", above).fetchone()
    return since_ns if found is None else min(since_ns, int(found))


def oldest_of(db: sqlite3.Connection, paths: Iterable[bytes], since_ns: int) -> int:
    """How old may be what is recorded of directories at these paths: what leaves one that was missed is as old as that."""
    return min((oldest(db, path, since_ns) for path in paths), default=since_ns) if holds(db) else since_ns


def doubt(db: sqlite3.Connection, since_ns: int) -> None:
    """Somebody may have left directories unlisted, and files unsent, in which something may be as old as ``since_ns``."""
    db.execute(
        "INSERT INTO unsettled (gfid, since_ns, tries, again_ns) VALUES (?, ?, 0, 0) "
        "ON CONFLICT (gfid) DO UPDATE SET since_ns = min(since_ns, excluded.since_ns), tries = tries + 1, upto = NULL",
        (ALL, since_ns),
    )


def doubt_until_now(db: sqlite3.Connection, since_ns: int) -> None:
    """The same; and something as old as that may have moved until now to where it was not looked for."""
    doubt(db, since_ns)
    db.execute("INSERT INTO unsettled (since_ns, tries, again_ns) VALUES (?, 0, 0)", (since_ns,))


def moved(db: sqlite3.Connection, since_ns: int) -> None:
    """Something as old as that may have another name by now; what goes wrong anywhere is as old, until all is applied that was recorded."""
    values = (since_ns, b"")
    known = "UPDATE unsettled SET since_ns = min(since_ns, ?), upto = NULL WHERE gfid IS NULL AND path = ?"
    if not db.execute(known, values).rowcount:
        db.execute("INSERT INTO unsettled (since_ns, path, tries, again_ns) VALUES (?, ?, 0, 0)", values)


def doubted(db: sqlite3.Connection, row: Unsettled, *, lacking: bool = False) -> None:
    """All that is unlisted is known now, and missed. ``lacking``: whose files are to be sent is seen when all is applied."""
    # Unless somebody had reason to doubt again since they were asked for.
    if not lacking:
        db.execute("DELETE FROM unsettled WHERE id = ? AND tries = ?", (row.id, row.tries))
    marking.move(db)


def seen_at(db: sqlite3.Connection, directories: Iterable[tuple[bytes, bytes]]) -> None:
    """Where directories (gfid, path) that were missed are listed now."""
    db.executemany(
        "UPDATE unsettled SET path = ? WHERE gfid = ?", [(path, gfid.hex()) for gfid, path in directories]
    )


def since_ns(db: sqlite3.Connection) -> int:
    """How old may be what an open crawl misses: everything until the front is there, once a crawl was completed, but for what failed."""
    (since,) = db.execute(
        f"SELECT CASE complete WHEN 1 THEN max(stime_ns, {marking.BOUND}) ELSE stime_ns END + 1 FROM brick"
    ).fetchone()
    return int(since)


def rows(db: sqlite3.Connection) -> list[Unsettled]:
    return [
        Unsettled(*row)
        for row in db.execute("SELECT id, gfid, since_ns, upto, tries, again_ns, path FROM unsettled")
    ]


def directories(db: sqlite3.Connection) -> set[bytes]:
    """Those that are to be listed, by their gfids."""
    return {bytes.fromhex(gfid) for (gfid,) in db.execute("SELECT gfid FROM unsettled WHERE gfid <> ''")}


def holds(db: sqlite3.Connection) -> bool:
    """Whether the mark waits for any."""
    return db.execute("SELECT 1 FROM unsettled LIMIT 1").fetchone() is not None


def wait_for(db: sqlite3.Connection, asked: Iterable[Unsettled], position: int) -> None:
    """Where the changelog stands, asked after these were noted; not of what there was another reason to doubt by then."""
    db.executemany(
        "UPDATE unsettled SET upto = ? WHERE id = ? AND upto IS NULL AND tries = ?",
        [(position, row.id, row.tries) for row in asked],
    )


def look_again(db: sqlite3.Connection, missed: Iterable[tuple[Unsettled, bytes | None]]) -> None:
    """Directories are to be looked for again, where they are by now, each time later."""
    now = time.time_ns()
    for row, path in missed:
        wait = min(_FIRST_S * 2 ** min(row.tries, 10), _LONGEST_S)
        db.execute(
            "UPDATE unsettled SET upto = NULL, tries = tries + 1, again_ns = ?, path = coalesce(?, path) "
            "WHERE id = ? AND upto IS ?",
            (now + wait * 10**9, path, row.id, row.upto),
        )


def give_up(db: sqlite3.Connection, rows_: Iterable[Unsettled]) -> None:
    """These are on the failure list from now on, whose oldest holds the mark as well."""
    db.executemany("DELETE FROM unsettled WHERE id = ? AND upto IS ?", [(row.id, row.upto) for row in rows_])


def listed(db: sqlite3.Connection, found: Iterable[Unsettled]) -> None:
    """These directories are listed, or gone. What was found in them, and what left them before, is there when everything recorded
    until now is applied.
    """
    db.executemany(
        "UPDATE unsettled SET gfid = NULL, upto = NULL, tries = tries + 1 WHERE id = ? AND upto IS ?",
        [(row.id, row.upto) for row in found],
    )


def applied(db: sqlite3.Connection, front: int) -> None:
    """Everything recorded up to ``front`` is applied: of the moments until then nothing is missing."""
    db.execute("DELETE FROM unsettled WHERE gfid IS NULL AND upto <= ?", (front,))
    marking.move(db)


def scanned(db: sqlite3.Connection, found: Iterable[Unsettled] = ()) -> None:
    """Nobody records what moves: what is left is what a scan knows that it missed, without ``found``.

    Not while another scan is open: what that has listed is not all there yet.
    """
    if db.execute("SELECT 1 FROM brick WHERE crawl IS NOT NULL").fetchone():
        return
    db.execute("DELETE FROM unsettled WHERE gfid IS NULL OR gfid = ?", (ALL,))
    db.executemany("DELETE FROM unsettled WHERE id = ?", [(row.id,) for row in found])
    marking.move(db)


def positions_lost(db: sqlite3.Connection) -> None:
    """The changelog is another one."""
    db.execute("UPDATE unsettled SET upto = NULL")
