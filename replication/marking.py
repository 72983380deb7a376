"""The mark (stime): up to when everything is on the secondary, from all that the progress database (progress.py) knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication import checkpoints

if TYPE_CHECKING:
    import sqlite3

# How far the front, failures and held deletions let it go (ns), of the one row of ``brick``.
BOUND = (
    "min(front_ns, "
    "coalesce((SELECT min(first_ns) - 1 FROM failure), front_ns), "
    "coalesce((SELECT since_ns - 1 FROM held), front_ns))"
)


def move(db: sqlite3.Connection) -> None:
    """Move it as far as it may go, and note which checkpoints are reached with it: part of each transaction that changes any of this.

    Monotone: a failure found later about something older holds the mark where it is, it never moves it back, because it
    was true when it was given.
    """
    db.execute(
        f"UPDATE brick SET stime_ns = max(stime_ns, min({BOUND}, "
        "coalesce((SELECT min(since_ns) - 1 FROM unsettled), front_ns))) WHERE complete = 1"
    )
    checkpoints.reach(db)
