"""What a comparison knows, in a SQLite file of its own: memory stays small, and it can be gone on with."""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.verify.compare import Difference
from replication.verify.totals import add_digests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from replication.verify.looks import Suspect

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- Units: waiting, or out with somebody.
CREATE TABLE IF NOT EXISTS unit (id INTEGER PRIMARY KEY, payload TEXT NOT NULL, out INTEGER NOT NULL DEFAULT 0);
-- Names that differed: "wait" for a look, are "out" for one, or are what they turned out to be.
CREATE TABLE IF NOT EXISTS suspect (
    path BLOB PRIMARY KEY, state TEXT NOT NULL, kind TEXT, detail TEXT NOT NULL, here TEXT NOT NULL, there TEXT NOT NULL,
    rounds INTEGER NOT NULL DEFAULT 0,
    token TEXT,                       -- until this is passed everything from before the last look may be on its way
    asked_ns INTEGER NOT NULL DEFAULT 0,
    passed INTEGER NOT NULL DEFAULT 0,
    linked INTEGER NOT NULL DEFAULT 0, -- 1: its content is right, its group of hard links may not be
    mending INTEGER NOT NULL DEFAULT 0, regular INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS suspect_state ON suspect(state);
-- Names of inodes that have several, here or there; 0: one.
CREATE TABLE IF NOT EXISTS link (path BLOB PRIMARY KEY, here INTEGER NOT NULL, there INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS equal (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_COUNTS = ("names", "contents", "bytes", "excluded", "young")
# Groups that one side has as one inode, and the other as several.
_SPLIT = """SELECT path FROM link WHERE {a} <> 0 AND {a} IN (SELECT {a} FROM link WHERE {a} <> 0 GROUP BY {a}
    HAVING count(DISTINCT CASE {b} WHEN 0 THEN path ELSE {b} END) > 1)"""
FINAL = ("differs", "unreadable", "unsettled", "mended")


class Row(NamedTuple):
    """One name that differed; see the schema."""

    path: bytes
    state: str
    kind: Difference | None
    detail: str
    here: str
    there: str
    rounds: int
    passed: bool
    asked_ns: int
    linked: bool
    mending: int


_COLUMNS = "path, state, kind, detail, here, there, rounds, passed, asked_ns, linked, mending"


class Store:
    """The file of one comparison."""

    def __init__(self, path: Path | str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, timeout=30)
        self.db.executescript(f"PRAGMA synchronous=OFF; PRAGMA journal_mode=WAL; {_SCHEMA}")

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    # ---- what is known of the whole

    def get(self, key: str, default: Any = None) -> Any:
        found = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if found is None else json.loads(found[0])

    def put(self, **values: Any) -> None:
        self.db.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in values.items()],
        )

    def totals(self) -> dict[str, Any]:
        return {**dict.fromkeys(_COUNTS, 0), "digest": "", **self.get("totals", {})}

    def add_totals(self, found: dict[str, Any]) -> None:
        """What a unit proved."""
        totals = self.totals()
        for key in _COUNTS:
            totals[key] += found[key]
        totals["digest"] = add_digests(totals["digest"], found["digest"])
        self.put(totals=totals)
        self.db.executemany(
            "INSERT OR IGNORE INTO equal VALUES (?)", [(_bytes(path),) for path in found["paths"]]
        )

    # ---- units

    def add_unit(self, payload: dict[str, Any]) -> None:
        self.db.execute("INSERT INTO unit (payload) VALUES (?)", (json.dumps(payload),))

    def units(self, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Units that wait. The newest first: what a unit left over goes before other parts of the tree, so few wait."""
        rows = self.db.execute(
            "SELECT id, payload FROM unit WHERE out = 0 ORDER BY id DESC LIMIT ?", (limit,)
        )
        return [(number, json.loads(payload)) for number, payload in rows]

    def send_out(self, number: int, payload: dict[str, Any]) -> None:
        """A unit is out from now on, with this payload."""
        self.db.execute("UPDATE unit SET out = 1, payload = ? WHERE id = ?", (json.dumps(payload), number))

    def out(self) -> dict[int, dict[str, Any]]:
        return {n: json.loads(p) for n, p in self.db.execute("SELECT id, payload FROM unit WHERE out = 1")}

    # ---- names that differ

    def suspect(self, suspect: Suspect) -> None:
        """A name at which something differs, seen for the first time. A directory that cannot be listed stays that."""
        state = "unreadable" if suspect.path.endswith(b"/") else "wait"
        self.db.execute(
            "INSERT OR REPLACE INTO suspect (path, state, kind, detail, here, there) VALUES (?, ?, ?, ?, ?, ?)",
            (suspect.path, state, suspect.kind, suspect.detail, suspect.here, suspect.there),
        )

    def row(self, path: bytes) -> Row | None:
        found = self.db.execute(f"SELECT {_COLUMNS} FROM suspect WHERE path = ?", (path,)).fetchone()
        return None if found is None else _row(found)

    def rows(self, state: str, limit: int = -1) -> Iterator[Row]:
        """In the order of their paths."""
        found = self.db.execute(
            f"SELECT {_COLUMNS} FROM suspect WHERE state = ? ORDER BY path LIMIT ?", (state, limit)
        )
        return map(_row, found)

    def count(self, state: str) -> int:
        return int(self.db.execute("SELECT count(*) FROM suspect WHERE state = ?", (state,)).fetchone()[0])

    def by_kind(self, state: str) -> dict[str, int]:
        return dict(
            self.db.execute("SELECT kind, count(*) FROM suspect WHERE state = ? GROUP BY kind", (state,))
        )

    def change(self, path: bytes, **values: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self.db.execute(f"UPDATE suspect SET {names} WHERE path = ?", (*values.values(), path))

    def drop(self, path: bytes) -> None:
        self.db.execute("DELETE FROM suspect WHERE path = ?", (path,))

    # ---- hard links

    def add_links(self, links: Iterable[tuple[bytes, int, int]]) -> None:
        self.db.executemany("INSERT OR REPLACE INTO link VALUES (?, ?, ?)", links)

    def doubt_links(self) -> int:
        """Names whose groups do not agree become suspects, unless they differ anyhow. How many."""
        cursor = self.db.execute(
            "INSERT OR IGNORE INTO suspect (path, state, kind, detail, here, there, linked) "
            f"SELECT path, 'wait', 'LINKS', '', '', '', 1 FROM ({_SPLIT.format(a='here', b='there')} "
            f"UNION {_SPLIT.format(a='there', b='here')})"
        )
        return cursor.rowcount

    def judge_links(self) -> None:
        """Of those that were looked at again ("checked"): which are not linked as on the primary; the rest is right."""
        checked = "(SELECT link.* FROM link JOIN suspect USING (path) WHERE state = 'checked')"
        for side, other, words in (("here", "there", "is one file with {} here, another one there"),
                                   ("there", "here", "is one file with {} there, another one here")):  # fmt: skip
            rows = self.db.execute(
                f"SELECT a.path, min(b.path) FROM {checked} a JOIN {checked} b ON a.{side} = b.{side} AND a.{side} <> 0 "
                f"AND b.path < a.path AND (a.{other} <> b.{other} OR a.{other} = 0) GROUP BY a.path"
            ).fetchall()
            for path, first in rows:
                self.change(path, state="differs", kind="LINKS", linked=0, detail=words.format(_shown(first)))
                # Which of the two is not as it was only the secondary's index knows.
                self.db.execute(
                    "UPDATE suspect SET state = 'partner' WHERE path = ? AND state = 'checked'", (first,)
                )
        self.db.execute("UPDATE suspect SET state = 'mended' WHERE state = 'checked' AND mending = 1")
        self.db.execute("DELETE FROM suspect WHERE state = 'checked'")


def _row(values: tuple[Any, ...]) -> Row:
    path, state, kind, *rest = values
    return Row(bytes(path), state, Difference(kind) if kind else None, *rest)


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
