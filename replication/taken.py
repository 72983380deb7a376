"""Up to which batch of which epoch the reports of units were taken over, so that none is taken over again.

A ledger may come back in an older state than it had: what a batch reported then must not undo what later ones said.
In the progress database (progress.py), whose transactions these functions are part of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

SCHEMA = """
CREATE TABLE IF NOT EXISTS taken (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, batch INTEGER NOT NULL);
INSERT OR IGNORE INTO taken VALUES (1, 0, 0);
"""


def take(db: sqlite3.Connection, epoch: int, batch: int) -> bool:
    """Note that this batch's reports are taken over. False when they were before, or the epoch is not the latest."""
    done = db.execute(
        "UPDATE taken SET epoch = ?, batch = ? WHERE (epoch < ? OR batch < ?) AND ? = (SELECT epoch FROM brick)",
        (epoch, batch, epoch, batch, epoch),
    )
    return bool(done.rowcount)


def upto(db: sqlite3.Connection, epoch: int) -> int:
    """The last batch of this epoch whose reports were taken over; 0: none."""
    row = db.execute("SELECT batch FROM taken WHERE epoch = ?", (epoch,)).fetchone()
    return int(row[0]) if row else 0
