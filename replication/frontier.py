"""What an open hybrid crawl has still to look at, in the progress database, and how its directories are written there
and in the ledger.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

SCHEMA = """
-- The frontier of the open hybrid crawl: units of directories still to be looked at.
CREATE TABLE IF NOT EXISTS frontier (unit TEXT PRIMARY KEY, dirs TEXT NOT NULL) WITHOUT ROWID;
"""


def done(db: sqlite3.Connection, crawl: str, unit: str, found: dict[str, str]) -> dict[str, str]:
    """One unit is done, and these are left of it; see Progress.crawled."""
    if not db.execute("SELECT 1 FROM brick WHERE crawl = ?", (crawl,)).fetchone():
        return found
    if db.execute("DELETE FROM frontier WHERE unit = ?", (unit,)).rowcount:
        db.executemany("INSERT OR IGNORE INTO frontier VALUES (?, ?)", found.items())
        return found
    below = "SELECT unit, dirs FROM frontier WHERE substr(unit, 1, ?) = ?"
    return dict(db.execute(below, (len(unit) + 1, f"{unit}.")))


def encode_dirs(dirs: list[tuple[bytes, bytes]]) -> str:
    """Directories of a crawl unit, (gfid, path relative to the volume), as JSON text."""
    return json.dumps([[gfid.hex(), os.fsdecode(path)] for gfid, path in dirs])


def decode_dirs(text: str) -> list[tuple[bytes, bytes]]:
    """What encode_dirs wrote. Raises ValueError."""
    return [(bytes.fromhex(gfid), os.fsencode(path)) for gfid, path in json.loads(text)]
