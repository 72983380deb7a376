"""What the secondary says of deletions that it holds, and how that is kept: it holds the mark as well.

It stands in the progress database (progress.py), whose transactions these functions are part of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

SCHEMA = """
-- Deletions that the secondary holds: one row, while there are any.
CREATE TABLE IF NOT EXISTS held (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    since_ns INTEGER,                -- bounds the mark; NULL: they are ignored, and bound nothing
    question TEXT NOT NULL           -- what a person is asked; empty: nothing
);
"""


@dataclass(frozen=True, slots=True)
class Held:
    """``any``: names stand on the secondary that the primary has no more."""

    any: bool = False
    since_ns: int | None = None
    question: str = ""

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From an answer to `purge`."""
        asked = answer.get("question")
        return cls(bool(answer["held"]), answer["since"], _words(asked) if asked else "")


def _words(asked: Mapping[str, Any]) -> str:
    names = ", ".join(asked["names"])
    more = ", …" if asked["count"] > len(asked["names"]) else ""
    text = (
        f"{asked['count']} names are gone from the primary, more than max_delete allows ({asked['most']}); "
        f"they stay on the secondary until you agree: {names}{more}"
    )
    return text.encode(errors="backslashreplace").decode()  # names are bytes; SQLite and JSON want text


def keep(db: sqlite3.Connection, held: Held) -> None:
    """Instead of what was known before."""
    db.execute("DELETE FROM held")
    if held.any:
        db.execute("INSERT INTO held VALUES (1, ?, ?)", (held.since_ns, held.question))


def known(db: sqlite3.Connection) -> Held:
    found = db.execute("SELECT since_ns, question FROM held").fetchone()
    return Held(True, *found) if found else Held()
