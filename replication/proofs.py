"""Proofs: which slice of the tree was compared by content, when, and what was found.

They stand in the progress database. A comparison of everything proves all slices at once, until each was proved anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from replication import reading

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS proof (
    slice INTEGER NOT NULL, slices INTEGER NOT NULL,  -- n of t; 1 of 1: everything
    started_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL,
    names INTEGER NOT NULL, contents INTEGER NOT NULL, bytes INTEGER NOT NULL,  -- equal; by content; of these
    found INTEGER NOT NULL,          -- names that differed
    left INTEGER NOT NULL,           -- and still did at the end
    unreadable INTEGER NOT NULL, unsettled INTEGER NOT NULL,
    digest TEXT NOT NULL, hash TEXT NOT NULL,
    PRIMARY KEY (slice, slices)
) WITHOUT ROWID;
-- When the next slice was begun last, or first thought of.
CREATE TABLE IF NOT EXISTS proof_plan (one INTEGER PRIMARY KEY CHECK (one = 1), tried_ns INTEGER NOT NULL);
"""
_COLUMNS = "slice, slices, started_ns, ended_ns, names, contents, bytes, found, left, unreadable, unsettled, digest, hash"


class Proof(NamedTuple):
    """One comparison that came to its end; see the schema."""

    slice: int
    slices: int
    started_ns: int
    ended_ns: int
    names: int
    contents: int
    bytes: int
    found: int
    left: int
    unreadable: int
    unsettled: int
    digest: str
    hash: str


class Proven(NamedTuple):
    """What is proved of a tree in ``slices``. ``oldest_ns``: None while a slice never was. ``left``: what differs."""

    slices: int
    proven: int
    oldest_ns: int | None
    latest_ns: int | None
    left: int


def keep(db: sqlite3.Connection, proof: Proof) -> None:
    """Note a proof, in the place of an older one. Those of a tree in other slices mean nothing any more."""
    if proof.slices > 1:
        db.execute("DELETE FROM proof WHERE slices NOT IN (1, ?)", (proof.slices,))
    marks = ", ".join("?" * len(proof))
    db.execute(f"INSERT OR REPLACE INTO proof ({_COLUMNS}) VALUES ({marks})", tuple(proof))


def _latest(db: sqlite3.Connection, slices: int) -> dict[int, Proof]:
    """The newest proof of each slice."""
    found: dict[int, Proof] = {}
    rows = db.execute(f"SELECT {_COLUMNS} FROM proof WHERE slices IN (1, ?) ORDER BY ended_ns", (slices,))
    for proof in map(Proof._make, rows):
        for number in range(1, slices + 1) if proof.slices == 1 else (proof.slice,):
            found[number] = proof
    return found


def proven(db: sqlite3.Connection, slices: int) -> Proven:
    """What is proved by now."""
    latest = _latest(db, slices)
    ends = [proof.ended_ns for proof in latest.values()]
    left = sum(proof.left for proof in set(latest.values()))
    return Proven(
        slices, len(latest), min(ends) if len(ends) == slices else None, max(ends, default=None), left
    )


def next_slice(db: sqlite3.Connection, slices: int) -> int:
    """The slice that was never proved, or whose proof is the oldest."""
    latest = _latest(db, slices)
    return min(range(1, slices + 1), key=lambda n: (latest[n].ended_ns if n in latest else 0, n))


def tried_ns(db: sqlite3.Connection) -> int | None:
    """When a slice was begun last."""
    found = db.execute("SELECT tried_ns FROM proof_plan").fetchone()
    return None if found is None else int(found[0])


def try_at(db: sqlite3.Connection, now_ns: int) -> None:
    """A slice begins."""
    db.execute("INSERT OR REPLACE INTO proof_plan VALUES (1, ?)", (now_ns,))


def read(path: Path, slices: int) -> Proven | None:
    """What a progress database says, whoever else uses it; None where there is no such thing."""
    return reading.ask(path, lambda db: proven(db, slices), None)
