"""The index of a changelog: one line of 64 bytes per segment, appended, each with a checksum.

From position to time, and the states that need no segment file: ticks and gaps. docs/formats.md
describes the bytes. One process appends; any number of others follow the file as it grows.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from zlib import crc32

_MAGIC = b"SmkIdx\r\n"
_VERSION = 1
_HEADER = struct.Struct("<8sHxx16s32x")  # magic, version, a random id of this file; then crc32
_ENTRY = struct.Struct(
    "<cBxxQQQQQ16x"
)  # operation, reason, number, start_ns, end_ns, records, size; then crc32
_CRC = struct.Struct("<I")
ENTRY_SIZE = _ENTRY.size + _CRC.size
_COMPACT_AT = 4096  # superseded entries in the file


class State(StrEnum):
    """What a position stands for."""

    DATA = "data"  # a segment file with records
    TICK = "tick"  # nothing happened; only time moved on
    GAP = "gap"  # anything may have happened: only a scan can tell


REASONS = (
    "",
    "started",
    "overflow",
    "agent down",
    "damaged",
    "limit",
    "recorder",
    "changelog off",
    "brick restarted",
)
_STATES = {b"D": State.DATA, b"T": State.TICK, b"G": State.GAP}
_OPERATIONS = {state: operation for operation, state in _STATES.items()}
_FORGET = b"F"


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One position. Every change made until ``end_ns`` is in this segment or an earlier one.

    Times are nanoseconds since the epoch, for people; never compare them across clocks. ``reason`` is one of
    REASONS, and only gaps have one. ``size`` is bytes on disk, 0 for ticks and gaps.
    """

    number: int
    start_ns: int
    end_ns: int
    records: int
    size: int
    state: State
    reason: str = ""


def _with_crc(data: bytes) -> bytes:
    return data + _CRC.pack(crc32(data))


def _encode(info: SegmentInfo) -> bytes:
    return _with_crc(
        _ENTRY.pack(
            _OPERATIONS[info.state],
            REASONS.index(info.reason),
            info.number,
            info.start_ns,
            info.end_ns,
            info.records,
            info.size,
        )
    )


class Index:
    """The entries of an index file, in memory, in order of their numbers."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: dict[int, SegmentInfo] = {}
        self.damaged = 0  # entries that could not be read
        self.superseded = 0
        self._fd = -1
        self._at = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def refresh(self) -> None:
        """Read what was appended since; start over when the file was replaced. Raises OSError."""
        if self._fd < 0 or not self._still_there():
            self.close()
            self.entries.clear()
            self._at = self.damaged = self.superseded = 0
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        size = os.fstat(self._fd).st_size
        while self._at + ENTRY_SIZE <= size:
            data = os.pread(self._fd, min(size - self._at, 1024 * ENTRY_SIZE), self._at)
            self._take(data[: len(data) - len(data) % ENTRY_SIZE])

    def _still_there(self) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def _take(self, data: bytes) -> None:
        for offset in range(0, len(data), ENTRY_SIZE):
            entry = data[offset : offset + ENTRY_SIZE]
            if _CRC.unpack_from(entry, _ENTRY.size)[0] != crc32(entry[: _ENTRY.size]):
                self.damaged += 1
            elif self._at + offset > 0:
                self._apply(*_ENTRY.unpack_from(entry))
            elif entry[: len(_MAGIC)] != _MAGIC:
                self.damaged += 1
        self._at += len(data)

    def _apply(
        self, operation: bytes, reason: int, number: int, start: int, end: int, records: int, size: int
    ) -> None:
        if operation == _FORGET:
            self.forget(number)
        elif operation in _STATES and reason < len(REASONS):
            self.put(SegmentInfo(number, start, end, records, size, _STATES[operation], REASONS[reason]))
        else:
            self.damaged += 1

    def put(self, info: SegmentInfo) -> None:
        """Add or replace an entry, in memory."""
        previous = next(reversed(self.entries), 0)
        if info.number in self.entries:
            self.superseded += 1
        elif info.state is not State.GAP and self._skips(previous, info.number):
            # Only gaps may skip numbers. Here an entry was lost, and what it stood for with it.
            before = self.entries[previous].end_ns if previous else info.start_ns
            lost = SegmentInfo(info.number - 1, before, info.start_ns, 0, 0, State.GAP, "damaged")
            self.entries[lost.number] = lost
        self.entries[info.number] = info

    def _skips(self, previous: int, number: int) -> bool:
        return number > previous + 1 and bool(previous or self.damaged)

    def forget(self, upto: int) -> list[SegmentInfo]:
        """Drop entries up to a number, in memory, but never the last one. Returns those dropped."""
        last = next(reversed(self.entries), 0)
        gone = []
        for number in list(self.entries):
            if number > upto or number == last:
                break
            gone.append(self.entries.pop(number))
        self.superseded += len(gone)
        return gone

    # ---- the writer's side

    def open_for_append(self) -> None:
        """Create the file, or cut a torn tail; after this, entries may be appended. Raises OSError."""
        self.refresh()
        if self._fd < 0:
            self._replace()
            return
        os.close(self._fd)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        if os.fstat(self._fd).st_size != self._at:
            os.ftruncate(self._fd, self._at)
        if self._at == 0:
            self._replace()

    def append(self, info: SegmentInfo) -> None:
        """Add or replace an entry, on disk. Raises OSError."""
        self._append(_encode(info))
        self.put(info)
        self._compact_if_worth_it()

    def append_forget(self, upto: int) -> list[SegmentInfo]:
        """Drop entries up to a number, on disk. Raises OSError."""
        self._append(_with_crc(_ENTRY.pack(_FORGET, 0, upto, 0, 0, 0, 0)))
        gone = self.forget(upto)
        self._compact_if_worth_it()
        return gone

    def sync(self) -> None:
        """Make it durable. Raises OSError."""
        os.fsync(self._fd)

    def compact(self) -> None:
        """Write only what is still valid, and replace the file. Readers notice. Raises OSError."""
        self._replace()

    def _append(self, entry: bytes) -> None:
        if os.write(self._fd, entry) != len(entry):
            os.ftruncate(self._fd, self._at)
            raise OSError(28, "no space left for the changelog's index", self.path)
        self._at += len(entry)

    def _compact_if_worth_it(self) -> None:
        if self.superseded > max(_COMPACT_AT, len(self.entries)):
            self._replace()

    def _replace(self) -> None:
        head = _with_crc(_HEADER.pack(_MAGIC, _VERSION, os.urandom(16)))
        _write_whole(self.path, [head, *map(_encode, self.entries.values())])
        self.close()
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._at = os.fstat(self._fd).st_size
        self.superseded = self.damaged = 0


def _write_whole(path: str, parts: Iterable[bytes]) -> None:
    aside = path + ".new"
    with open(aside, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, path)


def as_gap(info: SegmentInfo, reason: str) -> SegmentInfo:
    """The same position, of which nothing is known any more."""
    return replace(info, state=State.GAP, reason=reason, records=0, size=0)
