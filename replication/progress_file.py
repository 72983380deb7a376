"""The file of a session's durable progress (progress.py): its tables, and how it is opened."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from replication import (
    checkpoints,
    deletes,
    drills,
    failures,
    frontier,
    proofs,
    skips,
    snapshots,
    taken,
    unsettled,
)
from replication.errors import ExitCode, SeamarkError

if TYPE_CHECKING:
    from pathlib import Path

_SCHEMA = """
-- One row: the brick's state. Positions are changelog segment numbers, times nanoseconds.
CREATE TABLE IF NOT EXISTS brick (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,          -- fence of the latest holder; only ever grows
    front INTEGER NOT NULL,          -- last segment whose batch is applied and durable
    front_ns INTEGER NOT NULL,       -- time of that position
    stime_ns INTEGER NOT NULL,       -- the mark: min(front_ns, oldest unresolved failure, what is unsettled)
    crawl TEXT,                      -- id of the hybrid crawl that is open, or NULL
    crawl_position INTEGER NOT NULL, -- where the changelog stood when that crawl began
    crawl_ns INTEGER NOT NULL,       -- and when that was
    crawl_since_ns INTEGER NOT NULL, -- what changed since then is compared, whatever its version says
    crawl_swept INTEGER NOT NULL,    -- 1 once the whole tree was looked at; what is left is data that was missed
    crawl_epoch INTEGER NOT NULL,    -- epoch in which that crawl was begun
    crawl_ended INTEGER NOT NULL,    -- epoch in which the hybrid crawl that finished last was begun
    scan_ns INTEGER NOT NULL,        -- when the tree is to be compared again,
    scan_by TEXT NOT NULL,           -- if changes are noticed in this way still
    index_id TEXT NOT NULL,          -- which index the secondary had,
    gen INTEGER NOT NULL,            -- which `sync` was its last,
    boot TEXT NOT NULL,              -- and which boot of its host we saw last
    complete INTEGER NOT NULL        -- 1 once a hybrid crawl has ever finished
);
INSERT OR IGNORE INTO brick VALUES (1, 0, 0, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, '', '', 0, '', 0);
-- What a hybrid crawl was made under: that of the open one, and that of the last that was completed.
CREATE TABLE IF NOT EXISTS crawl_filters (which TEXT PRIMARY KEY, rules TEXT NOT NULL) WITHOUT ROWID;
"""
_PARTS = (frontier, failures, skips, unsettled, checkpoints, taken, deletes, proofs, snapshots, drills)
_TABLES = _SCHEMA + "".join(part.SCHEMA for part in _PARTS)
_VERSION = 10  # of the schema
_EXTENDED = {0, 2, 3, 4, 5, 6, 7, 8, 9}  # an empty file, and versions that lack tables only
_OPEN_S = 30.0


class ProgressError(SeamarkError):
    """The progress database cannot be used."""


def open_database(path: Path) -> sqlite3.Connection:
    """A connection to the database at ``path``, which is made if it is not there. Raises ProgressError."""
    try:
        return _open(path)
    except sqlite3.Error as error:
        raise ProgressError(
            f"{path} cannot be used ({error}); move it away: a full comparison then starts, "
            "and what is right on the secondary is not sent again",
            ExitCode.USAGE,
        ) from None


def _open(path: Path) -> sqlite3.Connection:
    """Open, and make what is missing. Several processes may come at once, and SQLite does not wait for
    whoever changes the journal mode: so that is tried again.
    """
    until = time.monotonic() + _OPEN_S
    while True:
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA synchronous=FULL")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == _VERSION:
                (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
                if sound != "ok":
                    raise sqlite3.DatabaseError(sound)
                return db
            if version not in _EXTENDED:
                raise sqlite3.DatabaseError(f"it is of version {version}, not {_VERSION}")
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={_VERSION}; COMMIT;")
        except sqlite3.OperationalError as error:
            db.close()
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return db
