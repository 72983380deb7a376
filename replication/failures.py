"""What could not be replicated: one row for each thing, until it is. The oldest of them holds the mark.

They stand in the progress database (progress.py), whose transactions these functions are part of. What a person
has skipped is moved to a table of its own (skips.py), and holds nothing any more.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replication import columns, marking, reading, skips, unsettled

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

SCHEMA = """
-- What could not be replicated, until it is. first_ns bounds the mark. Text is a BLOB where it is no UTF-8.
CREATE TABLE IF NOT EXISTS failure (
    key TEXT PRIMARY KEY,            -- step and gfid or path: one row for one thing that fails
    step TEXT NOT NULL, gfid TEXT, path TEXT, code TEXT NOT NULL, error TEXT NOT NULL,
    tries INTEGER NOT NULL, first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, next_ns INTEGER NOT NULL
) WITHOUT ROWID;
"""
_COLUMNS = "key, step, gfid, path, code, error, tries, first_ns, last_ns, next_ns"
_FIRST_S = 5
_SOON_S = 1  # the same of what will pass: it is mostly over when what was recorded next is applied
_MOST_PATHS = 100_000
_JITTER = 0.5  # what failed together is not tried again together for ever

Seen = Iterable[
    tuple[str, int]
]  # keys of what was seen to be right, and when the look began that saw it (ns)
NOW = 2**62
UNEXPECTED = "unexpected"  # the code of what nobody foresaw: such a file is tried again alone

# What a person can do about it depends on what kind of failure it is.
_CLASSES = {
    "permission": "permission",
    "read-only": "permission",
    "no-space": "space",
    "vanished": "vanished",
    "unsupported": "unsupported",
    "busy": "transient",
    "changed": "transient",
    "moved": "transient",
    "io": "transient",
}
_PASSING = {"busy", "changed", "moved"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One thing that could not be replicated. Times are nanoseconds since the epoch; ``next_ns``: its next try."""

    step: str
    gfid: str | None
    path: str | None
    code: str
    error: str
    tries: int = 1
    first_ns: int = 0
    last_ns: int = 0
    next_ns: int = 0
    of: str | None = None  # what cannot be looked at, see ``within``

    @property
    def key(self) -> str:
        return f"{self.step}:{self.of or self.gfid or self.path}"

    @property
    def kind(self) -> str:
        """Its class: transient, permission, space, vanished, unsupported, or other."""
        return _CLASSES.get(self.code, "other")

    @property
    def will_pass(self) -> bool:
        """Whether it is likely to come through by itself: it was renamed or written to at that moment."""
        return self.code in _PASSING


def within(directory: bytes, name: bytes = b"") -> str:
    """A name in a directory, given by its gfid: that stays so whatever the directory is called. Without a name: all that is in it."""
    return f"{directory.hex()}//{os.fsdecode(name)}"


def of_key(key: str) -> str | None:
    """What was given as ``of`` of a failure of this key. (A path has no empty component.)"""
    of = key.partition(":")[2]
    return of if "//" in of else None


def _resolve(db: sqlite3.Connection, resolved: Seen, now: int) -> None:
    """But for what failed again since it was seen. (A failure of the future is one of a clock that was ahead.)"""
    for key, looked_ns in resolved:
        again = (columns.encode(key), looked_ns + 1, now)
        db.execute("DELETE FROM failure WHERE key = ? AND NOT last_ns BETWEEN ? AND ?", again)
        if not db.execute("SELECT 1 FROM skip WHERE key = ? AND seen_ns BETWEEN ? AND ?", again).fetchone():
            skips.end(db, key, skips.REPLICATED, now)


def left(db: sqlite3.Connection, gone: Iterable[str]) -> None:
    """The names of these are not there any more. What they stood for may have others, and fail there: that is as old, until all is
    applied that was recorded by now. It may have been seen there already.
    """
    for key in gone:
        found = db.execute(
            "SELECT first_ns, last_ns FROM failure WHERE key = ?", (columns.encode(key),)
        ).fetchone()
        if found is not None:
            unsettled.moved(db, found[0])
            db.execute(
                "UPDATE failure SET first_ns = min(first_ns, ?) WHERE step = 'entry' AND tries = 1 AND last_ns >= ?",
                found,
            )


def let_go(db: sqlite3.Connection, gone: list[str]) -> None:
    """What failed under these keys is not there any more: it is gone, or another name of it is still to come."""
    left(db, gone)
    _resolve(db, ((key, NOW) for key in gone), time.time_ns())
    marking.move(db)


def record(db: sqlite3.Connection, failed: Iterable[Failure], resolved: Seen, since_ns: int) -> None:
    """Add or renew failures, and drop those that are resolved; see Progress.record."""
    now = time.time_ns()
    _resolve(db, resolved, now)
    for failure in failed:
        if skips.covers(db, failure.key, failure.code, now):
            continue
        path = None if failure.path is None else os.fsencode(failure.path)
        first = unsettled.oldest(db, path, failure.first_ns or since_ns or now)
        db.execute(
            "INSERT INTO failure VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "code = excluded.code, error = excluded.error, path = coalesce(excluded.path, path), "
            "tries = tries + 1, last_ns = excluded.last_ns",
            (columns.encode(failure.key), failure.step, failure.gfid, columns.encode(failure.path), failure.code,
             columns.encode(failure.error), 1, first, now, now + _first_s(failure) * 10**9),
        )  # fmt: skip


def oldest(db: sqlite3.Connection, limit: int) -> list[Failure]:
    return _failures(db.execute(f"SELECT {_COLUMNS} FROM failure ORDER BY first_ns LIMIT ?", (limit,)))


def read(path: Path, limit: int) -> list[Failure]:
    """The oldest of a progress database, whoever else uses it; none where there is no such thing."""
    return reading.ask(path, lambda db: oldest(db, limit), [])


def _failures(rows: Iterable[tuple[object, ...]]) -> list[Failure]:
    names = _COLUMNS.split(", ")
    found = []
    for row in rows:
        values: dict[str, Any] = dict(zip(names, map(columns.decode, row), strict=True))
        found.append(Failure(of=of_key(values.pop("key")), **values))
    return found


def keys(db: sqlite3.Connection, limit: int) -> set[str]:
    """Of the oldest, if there are more; what is skipped may still come through, and is among them."""
    rows = db.execute("SELECT key FROM failure ORDER BY first_ns LIMIT ?", (limit,))
    return {str(columns.decode(key)) for (key,) in rows} | skips.keys(db)


def paths(db: sqlite3.Connection) -> set[str]:
    """Where something cannot be looked at, or be made: at most so many as ``keys`` gives."""
    rows = db.execute(
        "SELECT path FROM failure WHERE step = 'entry' ORDER BY first_ns LIMIT ?", (_MOST_PATHS,)
    )
    return {str(columns.decode(path)) for (path,) in rows if path is not None}


def count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM failure").fetchone()[0])


def due(db: sqlite3.Connection, limit: int, longest_s: float, *, at_once: bool) -> list[Failure]:
    """Those whose next try is due, all with ``at_once``; their next one is put off, doubling up to ``longest_s``."""
    now = time.time_ns()
    latest = now + int(
        max(longest_s, _FIRST_S) * 10**9
    )  # what is due later than that was so by a clock that was ahead
    found = _failures(
        db.execute(
            f"SELECT {_COLUMNS} FROM failure WHERE NOT next_ns BETWEEN ? AND ? OR ? ORDER BY next_ns LIMIT ?",
            (now + 1, latest, at_once, limit),
        ).fetchall()
    )
    for failure in found:
        wait = min(_first_s(failure) * 2 ** min(failure.tries, 20), longest_s) * random.uniform(
            1 - _JITTER, 1
        )
        _set_next(db, failure.key, now + int(wait * 10**9))
    return found


def _first_s(failure: Failure) -> int:
    return _SOON_S if failure.will_pass else _FIRST_S


def passing_due(db: sqlite3.Connection) -> bool:
    """Whether something that will pass is to be tried again now."""
    marks = ", ".join("?" * len(_PASSING))
    query = f"SELECT 1 FROM failure WHERE code IN ({marks}) AND next_ns <= ? LIMIT 1"
    return db.execute(query, (*_PASSING, time.time_ns())).fetchone() is not None


def hasten(db: sqlite3.Connection, chosen: Iterable[str]) -> int:
    """Have the failures of these keys tried again at once; how many there were."""
    return sum(_set_next(db, key, 0) for key in chosen)


def _set_next(db: sqlite3.Connection, key: str, next_ns: int) -> int:
    return db.execute("UPDATE failure SET next_ns = ? WHERE key = ?", (next_ns, columns.encode(key))).rowcount


def skip(db: sqlite3.Connection, chosen: Iterable[str], *, who: str, why: str) -> int:
    """Move the failures of these keys to what is skipped; how many there were."""
    now = time.time_ns()
    moved = 0
    for key in chosen:
        moved += skips.begin(db, columns.encode(key), who=who, why=why, now_ns=now)
        db.execute("DELETE FROM failure WHERE key = ?", (columns.encode(key),))
    return moved


def withdraw(db: sqlite3.Connection, chosen: Iterable[str]) -> int:
    """What was skipped under these keys is a failure again, to be tried at once; how many there were."""
    now = time.time_ns()
    back = 0
    for key in chosen:
        back += db.execute(
            "INSERT OR IGNORE INTO failure SELECT key, step, gfid, path, code, error, tries, first_ns, seen_ns, 0 "
            "FROM skip WHERE key = ? AND ended_ns IS NULL", (columns.encode(key),),
        ).rowcount  # fmt: skip
        skips.end(db, key, skips.WITHDRAWN, now)
    return back


def end_looked_at(db: sqlite3.Connection, crawl_ns: int) -> None:
    """The whole tree was looked at since ``crawl_ns``: what could not be read before, and can now, has been seen.

    Not so attributes: they may have changed and left the ctime by which a crawl goes. They are tried again by themselves.
    """
    db.execute("DELETE FROM failure WHERE step NOT IN ('data', 'metadata') AND last_ns < ?", (crawl_ns,))
    skips.end_looked_at(db, crawl_ns)
