"""Where a brick's changelog lives: numbered segments, their index, and what may be deleted of them.

A position is a segment's number, from 1. Numbers are never used twice, not even after a power failure
that lost the newest entries of the index: then the next one jumps, and is a gap.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from replication.changelog.index import Index, SegmentInfo, State, as_gap
from replication.changelog.reader import read_segment
from replication.changelog.record import Segment, SegmentDamaged, SegmentHeader
from replication.changelog.segment import Place, SegmentWriter, recover
from replication.private import private_dir
from replication.secondary.boot import boot_id

log = logging.getLogger(__name__)

_RESERVE = 100_000  # numbers reserved at a time, durably, for this boot
_MAX_SEGMENTS = 200_000


class StoreBusy(Exception):
    """Another process writes this changelog."""


class SegmentDropped(Exception):
    """A position's records were there, and are not any more: it is a gap by now, or was forgotten."""


class NotTheWriter(Exception):
    """Only who holds the lock may do it, which the agent does; ask the agent (agent_call), or stop it."""


MAX_BYTES = 1 << 30  # of the segment files, unless another limit is given


class ChangelogStore:
    """Reads a changelog; after ``begin_writing``, writes it too.

    ``max_bytes`` limits the segment files: beyond it the oldest become gaps and ``on_alarm`` is told.
    Not thread-safe: one instance per thread.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        max_bytes: int = MAX_BYTES,
        on_alarm: Callable[[str], None] = log.warning,
    ) -> None:
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        self._on_alarm = on_alarm
        self._index = Index(str(self.directory / "index"))
        self._lock = -1
        self._floor = 1
        self._reserved = 0
        self._clean = False
        self._size = 0

    # ---- reading

    def segments(self, after: int = 0) -> list[SegmentInfo]:
        """All closed positions beyond ``after``, in order. Raises OSError."""
        self._refresh()
        entries = self._index.entries
        if after in entries:  # the usual case: only the newest are wanted
            found = []
            for number in reversed(entries):
                if number <= after:
                    break
                found.append(entries[number])
            return found[::-1]
        return [info for number, info in entries.items() if number > after]

    def last_closed(self) -> SegmentInfo | None:
        """The newest position; None when there is none. A tick's ``end_ns`` may grow while it is the newest."""
        self._refresh()
        number = next(reversed(self._index.entries), None)
        return None if number is None else self._index.entries[number]

    def open_number(self) -> int:
        """The position that will be closed next."""
        last = self.last_closed()
        return max(self._floor, 1 if last is None else last.number + 1)

    def read(self, number: int) -> Segment:
        """The segment at a position; without records for ticks and gaps.

        Raises SegmentDamaged when its file is gone, torn or damaged (then call ``mark_damaged``), KeyError
        for a position that is unknown or forgotten.
        """
        self._refresh()
        info = self._index.entries[number]
        if info.state is not State.DATA:
            return Segment((), _header_of(info))
        path = self._path(number)
        try:
            segment = read_segment(path)
        except FileNotFoundError:
            raise SegmentDamaged(str(path), 0, "the segment's file is missing") from None
        if segment.info.number != number or not segment.info.closed:
            raise SegmentDamaged(str(path), 0, "the segment is torn, or another one's")
        return segment

    def read_records(self, number: int) -> Segment:
        """As ``read``, of a position that had records. Raises SegmentDropped, SegmentDamaged."""
        try:
            segment = self.read(number)
        except KeyError:
            raise SegmentDropped(f"segment {number} was dropped") from None
        # Looked at after it was read: what is dropped meanwhile reads as empty.
        self._refresh()
        info = self._index.entries.get(number)
        if info is None or info.state is State.GAP:
            raise SegmentDropped(f"segment {number} was dropped")
        return segment

    def position_at(self, time_ns: int) -> int | None:
        """The first position that holds, with those before it, all changes made until ``time_ns``.

        None while no closed position reaches that far.
        """
        self._refresh()
        return next((n for n, info in self._index.entries.items() if info.end_ns >= time_ns), None)

    def size(self) -> int:
        """Bytes of all segments."""
        self._refresh()
        return sum(info.size for info in self._index.entries.values())

    def close(self) -> None:
        """Let go of everything; an unfinished writer counts as crashed."""
        self._index.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> ChangelogStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- writing

    def lock(self) -> None:
        """Be the only writer. Raises StoreBusy, OSError."""
        if self._lock >= 0:
            return
        private_dir(self.directory)
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StoreBusy(f"{self.directory} is written by another process") from None
        self._lock = fd

    def begin_writing(self) -> None:
        """Take the lock and put in order what the last writer left. Raises StoreBusy, OSError."""
        self.lock()
        self._index.open_for_append()
        lost = self._index.damaged
        whole = self._take_in_strays()
        self._skip_numbers_that_may_be_lost(whole)
        self._size = sum(info.size for info in self._index.entries.values())
        if lost:
            log.warning("%s: %d damaged entries of the index", self.directory, lost)
            self.gap("damaged")
            self._index.compact()

    def finish(self) -> None:
        """Make everything durable, and note that this writer ended well. Raises OSError."""
        self._need_lock()
        self._index.sync()
        self._write_state(clean=True)

    def end_writing(self) -> None:
        """``finish``, and let go of the lock. Raises OSError."""
        self.finish()
        os.close(self._lock)
        self._lock = -1

    def add(self, places: Iterable[Place], start_ns: int, end_ns: int) -> SegmentInfo:
        """Close a segment with these records. Raises OSError; then nothing was added."""
        self._need_lock()
        number = self._next_number()
        path = self._path(number)
        try:
            info = self._write_segment(path, number, places, start_ns, self._monotone(end_ns))
            self._index.append(info)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self._size += info.size
        self._keep_limit()
        return info

    def tick(self, now_ns: int) -> SegmentInfo:
        """Nothing happened until ``now_ns``. A tick after a tick extends it: same number, later end.

        Later whatever the clock says: that it moves on is the agent's sign of life (scheduler/signs.py).
        """
        self._need_lock()
        last = self.last_closed()
        end_ns = self._monotone(now_ns)
        if last is not None and last.state is State.TICK:
            end_ns = max(end_ns, last.end_ns + 1)
            info = SegmentInfo(last.number, last.start_ns, end_ns, 0, 0, State.TICK)
        else:
            start = end_ns if last is None else last.end_ns
            info = SegmentInfo(self._next_number(), start, end_ns, 0, 0, State.TICK)
        self._index.append(info)
        return info

    def gap(self, reason: str, now_ns: int | None = None) -> SegmentInfo:
        """From the last position until now, anything may have happened. ``reason``: one of index.REASONS."""
        self._need_lock()
        last = self.last_closed()
        end_ns = self._monotone(time.time_ns() if now_ns is None else now_ns)
        start = end_ns if last is None else last.end_ns
        info = SegmentInfo(self._next_number(), start, end_ns, 0, 0, State.GAP, reason)
        self._index.append(info)
        self._index.sync()
        return info

    def retain(self, upto: int) -> int:
        """Delete positions up to the slowest consumer's. Returns how many bytes that freed."""
        self._need_lock()
        first = next(iter(self._index.entries), 0)
        if not first or first > upto:
            return 0
        gone = self._index.append_forget(upto)
        return sum(self._delete(info) for info in gone)

    def mark_damaged(self, number: int) -> SegmentInfo:
        """Turn a position into a gap. Raises KeyError for an unknown one."""
        return self._lose(self._index.entries[number], "damaged")

    # ---- below

    def _write_segment(
        self, path: Path, number: int, places: Iterable[Place], start_ns: int, end_ns: int
    ) -> SegmentInfo:
        writer = SegmentWriter(str(path), number, start_ns)
        try:
            writer.append(places)
            writer.close(end_ns)
        except OSError:
            writer.abandon()
            raise
        return SegmentInfo(number, start_ns, end_ns, writer.records, writer.size, State.DATA)

    def _refresh(self) -> None:
        if self._lock < 0:
            self._index.refresh()

    def _need_lock(self) -> None:
        if self._lock < 0:
            raise NotTheWriter(f"{self.directory} is not open for writing")

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:016d}.segment"

    def _monotone(self, end_ns: int) -> int:
        last = self.last_closed()
        return end_ns if last is None else max(end_ns, last.end_ns)

    def _delete(self, info: SegmentInfo) -> int:
        if info.state is State.DATA:
            self._path(info.number).unlink(missing_ok=True)
            self._size -= info.size
        return info.size

    def _lose(self, info: SegmentInfo, reason: str) -> SegmentInfo:
        self._need_lock()
        gap = as_gap(info, reason)
        self._index.append(gap)
        self._delete(info)
        return gap

    def _keep_limit(self) -> None:
        if self._fits(1.0):
            return
        entries = self._index.entries
        first = next(iter(entries.values()))
        lost = 0
        for info in list(entries.values())[:-1]:
            if self._fits(0.9):
                break
            lost += info.state is State.DATA
            # Whoever is behind needs one gap there, not thousands.
            gap = SegmentInfo(info.number, first.start_ns, info.end_ns, 0, 0, State.GAP, "limit")
            self._index.append(gap)
            self._index.append_forget(info.number - 1)
            self._delete(info)
        self._on_alarm(
            f"changelog in {self.directory} is over its limit of {self.max_bytes} bytes: {lost} segments that "
            "are not replicated yet were dropped; a hybrid crawl has to cover them (of the sessions that were so far behind)"
        )

    def _fits(self, share: float) -> bool:
        return self._size <= self.max_bytes * share and len(self._index.entries) <= _MAX_SEGMENTS * share

    def _take_in_strays(self) -> bool:
        """A segment that was written, but not yet in the index, when its writer was killed; others were to be deleted.

        False: there were later ones, so the index has lost some.
        """
        whole = True
        last = next(reversed(self._index.entries), 0)
        for path in sorted(self.directory.glob("*.segment")):
            number = int(path.stem) if path.stem.isdigit() else 0
            known = self._index.entries.get(number)
            if known is not None and known.state is State.DATA:
                continue
            if known is not None or number != last + 1:
                whole = whole and number <= last + 1
                path.unlink()
                continue
            with suppress(SegmentDamaged):
                found = recover(str(path))
                if found.header.torn_bytes:
                    log.warning("%s: %d torn bytes at its end were cut off", path, found.header.torn_bytes)
                start = self._monotone(found.header.start_ns)
                self._index.append(SegmentInfo(number, start, start, found.records, found.size, State.DATA))
                last = number
                continue
            path.unlink()
        return whole

    # Numbers: the index is not synced at each segment, so a power failure may lose its newest entries
    # while a consumer has already stored a position beyond them. What was reserved durably is never given
    # out again in another boot, unless the last writer ended well.

    def _next_number(self) -> int:
        number = self.open_number()
        if number >= self._reserved or self._clean:
            self._reserved = max(self._reserved, number + _RESERVE // 2)
            self._write_state(clean=False)
        return number

    def _skip_numbers_that_may_be_lost(self, whole: bool) -> None:
        last = next(reversed(self._index.entries), 0)
        reserved, certain = self._read_state(last)
        self._floor = last + 1 if whole and certain else max(reserved, last + 1)
        self._reserved = max(reserved, self._floor + _RESERVE)
        self._write_state(clean=False)
        if self._floor > last + 1:
            self.gap("agent down")

    def _read_state(self, last: int) -> tuple[int, bool]:
        """Which numbers were reserved, and whether the index is certain to be complete."""
        try:
            state = json.loads((self.directory / "writer").read_bytes())
            whole = last == state.get("last", last) if state["clean"] else state["boot"] == boot_id()
            return int(state["reserved"]), whole
        except FileNotFoundError:
            return 0, last == 0
        except (ValueError, KeyError, TypeError):
            return last + _RESERVE, False

    def _write_state(self, *, clean: bool) -> None:
        path = self.directory / "writer"
        aside = self.directory / "writer.new"
        state = {"boot": boot_id(), "reserved": self._reserved, "clean": clean}
        if clean:
            state["last"] = next(reversed(self._index.entries), 0)
        text = json.dumps(state)
        with open(aside, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
        self._clean = clean


def _header_of(info: SegmentInfo) -> SegmentHeader:
    return SegmentHeader("seamark", "-", info.number, info.start_ns, info.end_ns)
