"""Durable progress of a session on the primary: epoch, front, mark, crawl frontier, failures.

One SQLite file per session. Redis may vanish at any moment; this is what work resumes from. All
statements stand in progress_file.py, failures.py, skips.py, unsettled.py, checkpoints.py, proofs.py, snapshots.py, drills.py,
taken.py, and in the methods below; each method is one transaction.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from replication import checkpoints, deletes, failures, frontier, marking, skips, taken, unsettled
from replication.checkpoints import Checkpoint
from replication.deletes import Held
from replication.failures import Failure
from replication.progress_file import open_database
from replication.secondary.untouched import NotClosed, Untouched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from replication.skips import Skip

_Answer = TypeVar("_Answer")
_SCAN_MOST_NS = 86_400 * 10**9  # the longest interval of pace.py: a later time is a clock that jumped


@dataclass(frozen=True, slots=True)
class Brick:
    """The one row of durable state; see the schema for units."""

    epoch: int
    front: int
    front_ns: int
    stime_ns: int
    crawl: str | None
    crawl_position: int
    crawl_ns: int
    crawl_since_ns: int
    crawl_swept: bool
    crawl_ended: int
    complete: bool

    @property
    def marked(self) -> bool:
        """Whether there is a mark, and the secondary is what it is the mark of."""
        return self.complete and self.stime_ns > 0


class Progress:
    """The progress database of one session; open one per process."""

    def __init__(self, path: Path) -> None:
        self._turns = threading.Lock()  # the threads of this process share one connection
        self._version = -1
        self._db = open_database(path)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._turns:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def look(self, question: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """What one of the modules that have statements finds."""
        return question(self._db)

    def change(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """What one of them changes."""
        with self._write() as db:
            change(db)

    def brick(self) -> Brick:
        row = self._db.execute(
            "SELECT epoch, front, front_ns, stime_ns, crawl, crawl_position, crawl_ns, crawl_since_ns, "
            "crawl_swept, crawl_ended, complete FROM brick"
        ).fetchone()
        values = list(row)
        values[8], values[10] = bool(row[8]), bool(row[10])
        return Brick(*values)

    def moved(self) -> bool:
        """Whether another process has written since this was asked last. Costs a few microseconds."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        before, self._version = self._version, version
        return bool(version != before)

    def new_epoch(self, at_least: int) -> int:
        """Take the next epoch, above every earlier one and ``at_least``; durable when it returns.

        What units of the last one had still to list is forgotten with them.
        """
        with self._write() as db:
            unsettled.doubt(db, self.brick().stime_ns + 1)
            db.execute("UPDATE brick SET epoch = max(epoch + 1, ?)", (at_least,))
            return int(db.execute("SELECT epoch FROM brick").fetchone()[0])

    def superseded(self) -> None:
        """Another holder was at work: until it is known how far, all versions are doubted, and everything is compared."""
        with self._write() as db:
            db.execute("DELETE FROM frontier")
            db.execute("UPDATE brick SET crawl = NULL, crawl_swept = 0, complete = 0, front_ns = 1")
            checkpoints.crawl_dropped(db)

    def inherit(self, stime_ns: int, since_ns: int) -> None:
        """The mark of who was at work before: it was true. Versions of what changed since ``since_ns`` are doubted;
        0: none are.
        """
        with self._write() as db:
            db.execute("UPDATE brick SET stime_ns = max(stime_ns, ?), front_ns = ?", (stime_ns, since_ns))

    # ---- the front and the mark

    def advance(self, epoch: int, front: int, front_ns: int) -> Brick:
        """Move the front (never back, never under an older epoch) and recompute the mark."""
        with self._write() as db:
            db.execute(
                "UPDATE brick SET front = ?, front_ns = max(front_ns, ?) WHERE front <= ? AND epoch = ?",
                (front, front_ns, front, epoch),
            )
            marking.move(db)
        return self.brick()

    # ---- checkpoints

    def ask(self, time_ns: int, *, position: int | None, by_time: bool) -> int:
        """Ask about a point: a time, or where the changelog stood then (None: not known). Returns its id."""
        with self._write() as db:
            return checkpoints.add(db, time_ns, position=position, by_time=by_time)

    def checkpoints(self) -> list[Checkpoint]:
        return checkpoints.of(self._db)

    def reach_checkpoints(self) -> None:
        """Look again which are reached: the mark does that by itself when it moves."""
        with self._write() as db:
            checkpoints.reach(db)

    # ---- the hybrid crawl

    def begin_crawl(
        self, epoch: int, crawl: str, position: int, time_ns: int, since_ns: int, units: dict[str, str],
        filters: str = "[]",
    ) -> bool:  # fmt: skip
        """Open a hybrid crawl with its first units; the changelog stood at ``position``.

        ``since_ns``: what changed since then is compared even if its version is known. ``filters``: the rules it is
        made under. False when a crawl is
        open already, or the epoch is over.
        """
        with self._write() as db:
            done = db.execute(
                "UPDATE brick SET crawl = ?, crawl_position = ?, crawl_ns = ?, crawl_since_ns = ?, "
                "crawl_swept = 0, crawl_epoch = epoch WHERE crawl IS NULL AND epoch = ?",
                (crawl, position, time_ns, since_ns, epoch),
            )
            if not done.rowcount:
                return False
            db.execute("DELETE FROM frontier")
            db.executemany("INSERT INTO frontier VALUES (?, ?)", units.items())
            db.execute("INSERT OR REPLACE INTO crawl_filters VALUES ('open', ?)", (filters,))
            checkpoints.crawl_begun(db, crawl)
        return True

    def crawl_filters(self) -> str:
        """The rules under which the last complete crawl was made."""
        found = self._db.execute("SELECT rules FROM crawl_filters WHERE which = 'complete'").fetchone()
        return found[0] if found else "[]"

    def frontier(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT unit, dirs FROM frontier"))

    def crawled(self, crawl: str, unit: str, found: dict[str, str]) -> dict[str, str]:
        """A unit of the crawl is done and found others: one durable step. What is left of it: a twin's division does not count."""
        with self._write() as db:
            return frontier.done(db, crawl, unit, found)

    def crawl_swept(self, crawl: str) -> None:
        """Every directory was looked at, and the data of what was found then is there."""
        with self._write() as db:
            db.execute("UPDATE brick SET crawl_swept = 1 WHERE crawl = ?", (crawl,))

    def scanned(self, by: str, again_ns: int) -> None:
        """The whole tree was compared, while changes were noticed by ``by``; when it is to be compared again."""
        with self._write() as db:
            db.execute("UPDATE brick SET scan_ns = ?, scan_by = ?", (again_ns, by))

    def scan_now(self) -> None:
        """Let the whole tree be compared as soon as there is room for it."""
        self.change(lambda db: db.execute("UPDATE brick SET scan_ns = 0"))

    def scan_due(self, by: str) -> bool:
        """Whether the tree is to be compared, now that changes are noticed by ``by``."""
        at, then = self._db.execute("SELECT scan_ns, scan_by FROM brick").fetchone()
        now = time.time_ns()
        return bool(by != then or at <= now or at > now + _SCAN_MOST_NS)

    def secondary_is(self, index_id: str, gen: int, boot: str, mark_ns: int | None = None) -> bool:
        """Note which index, `sync` and boot of the secondary we see. False: what we believed of it is void.

        Another index, or an older state of the same (a snapshot that was restored): nothing but a full crawl
        can tell what is there, and no mark is true but its own, ``mark_ns`` (None: it lost that, and nothing else).
        Another boot: a crawl under way may have lost what it did last, and begins anew.
        """
        with self._write() as db:
            row = db.execute("SELECT index_id, gen, boot, crawl, complete FROM brick").fetchone()
            old_id, old_gen, old_boot, crawl, complete = row
            replaced = bool(old_id) and (index_id != old_id or gen < old_gen)
            rebooted = bool(old_boot) and boot != old_boot and crawl is not None
            db.execute("UPDATE brick SET index_id = ?, gen = ?, boot = ?", (index_id, gen, boot))
            if replaced or rebooted:
                db.execute("DELETE FROM frontier")
                db.execute("UPDATE brick SET crawl = NULL, crawl_swept = 0")
                checkpoints.crawl_dropped(db)
            if replaced:
                db.execute("UPDATE brick SET complete = 0")
                if mark_ns is not None:
                    db.execute(
                        "UPDATE brick SET stime_ns = min(stime_ns, ?), front_ns = min(front_ns, max(1, ?))",
                        (mark_ns, mark_ns),
                    )
            return not rebooted and not (replaced and (complete or crawl is not None))

    def secondary(self) -> tuple[str, int, str]:
        """Index, `sync` and boot of the secondary as we saw them last; an empty index: it was never seen."""
        index_id, gen, boot = self._db.execute("SELECT index_id, gen, boot FROM brick").fetchone()
        return index_id, gen, boot

    def has_filled(self) -> bool:
        """Whether this session has ever been greeted by a secondary, so that it has one to lose."""
        return bool(self._db.execute("SELECT index_id FROM brick").fetchone()[0])

    def forget_secondary(self) -> None:
        """Another secondary takes the place of the one that we knew: nothing is known of what it holds, and no mark is true."""
        with self._write() as db:
            db.execute("DELETE FROM frontier")
            db.execute(
                "UPDATE brick SET index_id = '', gen = 0, boot = '', crawl = NULL, crawl_swept = 0, complete = 0, "
                "stime_ns = 0"
            )

    def synced(self, gen: int, *, held: bool = False, held_since_ns: int | None = None) -> None:
        """The secondary's `sync` of this number is done. It holds deletions of that time, and later."""
        with self._write() as db:
            db.execute("UPDATE brick SET gen = max(gen, ?)", (gen,))
            if held:
                deletes.keep(db, replace(deletes.known(db), any=True, since_ns=held_since_ns))

    def hold(self, held: Held) -> None:
        """What the secondary holds of deletions."""
        if held == self.held():
            return
        with self._write() as db:
            deletes.keep(db, held)
            marking.move(db)

    def held(self) -> Held:
        """Deletions that the secondary holds, when it was asked last."""
        return deletes.known(self._db)

    def changelog_lost(self) -> None:
        """The changelog is shorter than what was applied of it: positions mean nothing, nor where an open crawl began."""
        with self._write() as db:
            db.execute("DELETE FROM frontier")
            db.execute("UPDATE brick SET front = 0, complete = 0, crawl = NULL, crawl_swept = 0")
            checkpoints.crawl_dropped(db)
            checkpoints.positions_lost(db)
            unsettled.positions_lost(db)

    def expect_full_crawl(self) -> None:
        """What the secondary holds is not known (any more): nothing but a hybrid crawl can tell."""
        if self.brick().complete:
            with self._write() as db:
                db.execute("UPDATE brick SET complete = 0")

    def end_crawl(self, epoch: int, crawl: str, *, recorded: bool) -> None:
        """The open crawl is complete and durable: the front is where the changelog stood when it began.

        ``recorded``: what moved while it looked, from where it was still to come to where it had been, is in the
        changelog; until that is applied, the mark stays.
        """
        with self._write() as db:
            since_ns = unsettled.since_ns(db)
            done = db.execute(
                "UPDATE brick SET front = max(front, crawl_position), front_ns = max(front_ns, crawl_ns), "
                "crawl = NULL, complete = 1, crawl_ended = crawl_epoch WHERE crawl = ? AND epoch = ?",
                (crawl, epoch),
            )
            if not done.rowcount:
                return  # ended before, by a twin: another one may be open by now
            db.execute("DELETE FROM frontier")
            db.execute("UPDATE OR REPLACE crawl_filters SET which = 'complete' WHERE which = 'open'")
            (crawl_ns,) = db.execute("SELECT crawl_ns FROM brick").fetchone()
            failures.end_looked_at(db, crawl_ns)
            if recorded:
                unsettled.doubt_until_now(db, since_ns)
            else:
                unsettled.scanned(db)
            checkpoints.crawl_ended(db, crawl)
            marking.move(db)

    # ---- failures

    def record(self, failed: Iterable[Failure], resolved: Iterable[str], since_ns: int = 0) -> None:
        """Add or renew failures, and drop those whose keys are resolved. What failed may have changed since ``since_ns``
        at the earliest: the mark stays before it.
        """
        with self._write() as db:
            failures.record(db, failed, ((key, failures.NOW) for key in resolved), since_ns)
            marking.move(db)

    def take(
        self, epoch: int, batch: int, failed: Iterable[Failure], resolved: failures.Seen, since_ns: int
    ) -> None:
        """``record`` what the units of a batch reported, once: not again, and not under an older epoch."""
        with self._write() as db:
            if taken.take(db, epoch, batch):
                failures.record(db, failed, resolved, since_ns)
            marking.move(db)

    def taken(self, epoch: int) -> int:
        """The last batch of this epoch whose reports were taken; 0: none."""
        return taken.upto(self._db, epoch)

    def failures(self, limit: int = 1000) -> list[Failure]:
        return failures.oldest(self._db, limit)

    def failing(self, limit: int = 100_000) -> set[str]:
        """Keys of what is on the failure list, the oldest first if there are more, and of what is skipped."""
        return failures.keys(self._db, limit)

    def failure_count(self) -> int:
        return failures.count(self._db)

    def due(self, limit: int, longest_s: float = 600, *, at_once: bool = False) -> list[Failure]:
        """Failures whose next try is due; their next one is put off, doubling up to ``longest_s`` seconds."""
        with self._write() as db:
            return failures.due(db, limit, longest_s, at_once=at_once)

    def hasten(self, keys: Iterable[str]) -> int:
        """Have these tried again at once, and what was skipped among them held for a failure again; how many."""
        chosen = list(keys)
        with self._write() as db:
            back = failures.withdraw(db, chosen)
            return max(back, failures.hasten(db, chosen))

    def skip(self, keys: Iterable[str], *, who: str, why: str) -> int:
        """Do without these: they hold the mark no more. How many of them were failures."""
        with self._write() as db:
            moved = failures.skip(db, keys, who=who, why=why)
            marking.move(db)
        return moved

    def skips(self, *, ended: bool = False) -> list[Skip]:
        """What is skipped at the moment; all that ever was, if ``ended``."""
        return skips.of(self._db, ended=ended)

    def skip_count(self) -> int:
        return skips.count(self._db)


@contextmanager
def progress_of(path: Path) -> Iterator[Progress | None]:
    """The progress database at ``path``, for a command that looks at it; None where there is none yet."""
    progress = Progress(path) if path.exists() else None
    try:
        yield progress
    finally:
        if progress is not None:
            progress.close()


def has_filled(path: Path) -> bool:
    """Progress.has_filled of the database at ``path``, which is not touched, and need not be there."""
    try:
        found = Untouched(os.fsencode(path))
        try:
            return bool(found.db.execute("SELECT index_id FROM brick").fetchone()[0])
        finally:
            found.db.close()
    except (OSError, NotClosed, sqlite3.Error):
        return False
