"""Following one brick of a Gluster volume: the records of its changelog as the brick writes them.

A brick appends to CHANGELOG, and every rollover-time gives that the name of a second, in a folder of its date, and begins
another one; empty ones go. HTIME lists them, but not those that a brick which was started again found: so files are found
by their names, and HTIME tells what is amiss: a file of its that is not there, a second with two files (the later one
replaced the earlier), and a file that it does not have, which shows that the brick was started again. One that ended just
between the name and the next CHANGELOG leaves no such file: there CHANGELOG is younger than what came before it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from replication.changelog.brickplace import Clock, Place
from replication.changelog.glusterlog import Encoding, read_header, records_so_far
from replication.changelog.record import Record, SegmentDamaged, SegmentTorn
from replication.secondary.boot import boot_id
from replication.secondary.handles import stat_at

_CHUNK = 1 << 20
_CURRENT = "trusted.glusterfs.current_htime"
_PREFIX = "CHANGELOG."
_DAYS = 2
_TAIL = 8192  # bytes at the end of HTIME that hold a name
_NEXT_NS = 1_000_000_000  # within which a brick begins the next CHANGELOG


class _Closed(NamedTuple):
    second: int
    ino: int
    path: str


class BrickTail:
    """``on_lost(reason, since_ns)`` is called at the very place where something may be missing (index.REASONS) of what was done
    after that, by the clock of the brick's own inodes; None: nobody knows since when, as that clock was set, or its node started again.

    ``on_restart(since_ns)``: the brick was ended at some time after that one, by its own clock, and may not have recorded what it
    was just doing. None: its node was ended with it, and what it did before that may be undone, at any time.

    Nothing is believed to be at its end before the file that follows it is there. Raises OSError where the brick's
    directory cannot be read.
    """

    def __init__(
        self, brick: str, on_lost: Callable[[str, int | None], None], on_restart: Callable[[int | None], None]
    ) -> None:
        self.brick = brick
        self.directory = os.path.join(brick, ".glusterfs", "changelogs")
        self._on_lost = on_lost
        self._on_restart = on_restart
        self._fd = -1
        self._name = ""
        self._identity = (0, 0)
        self._second = 0  # of a closed file that is being read; 0: it is CHANGELOG
        self._offset = 0
        self._encoding: Encoding | None = None
        self._damaged = False
        self._htime, self._htime_at = "", 0
        self._floor = 0
        self._done: set[tuple[int, int]] = set()
        self._listed: dict[int, int] = {}  # seconds that HTIME has, and how often
        self._boot = boot_id()
        self._same_boot = True  # as when the file was written that is read
        self._clock = Clock()
        self._rolled: list[int] = []  # seconds at which HTIME got a name, whatever became of the file
        self._began: tuple[int, int] | None = (
            None  # what is known, or need not be, to follow what came before it
        )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    # ---- beginning

    def begin_at_end(self) -> None:
        """Follow from what is open now: what was before it is a gap of somebody else's. Raises OSError."""
        self._htime = self._current_htime()
        self._htime_at = self._size_of_htime()
        closed = self._closed(0)
        self._floor = closed[-1].second if closed else 0
        self._done = {(each.second, each.ino) for each in closed if each.second == self._floor}
        self._listed = {self._floor: 1}
        self._rolled = self._last_rolled()
        self._began = _identity_of(os.path.join(self.directory, "CHANGELOG"))
        self._same_boot = True

    def resume(self, place: Place) -> bool:
        """Go on from there; False where what was recorded since is not all there, and nobody knows what it is. Raises OSError."""
        self._same_boot = place.boot == self._boot
        if self._same_boot:
            self._clock = Clock(*place.clock)
        if self._go_on(place):
            return True
        self._floor = place.floor
        since_ns = self._since_ns()
        self.begin_at_end()
        if since_ns is not None:
            self._on_lost("changelog off", since_ns)
        return since_ns is not None

    def _go_on(self, place: Place) -> bool:
        if self._current_htime() != place.htime or self._size_of_htime() < place.htime_at:
            return False
        self._htime, self._htime_at = place.htime, place.htime_at
        self._floor, self._done = place.floor, set(place.done)
        self._listed = {place.floor: 1}
        self._rolled = self._last_rolled()
        self._began = place.open
        if place.open == (0, 0):
            return True
        names = [os.path.join(self.directory, "CHANGELOG"), *(each.path for each in self._new())]
        found = [name for name in names if _identity_of(name) == place.open]
        # One that was empty, and went with its name in HTIME alone, is not missed.
        return bool(found) or self._size_of_htime() > place.htime_at

    def is_recording(self) -> bool:
        """Whether the brick has a changelog open, or had when it ended."""
        return os.path.exists(os.path.join(self.directory, "CHANGELOG"))

    def place(self) -> Place:
        return Place(
            self._htime, self._htime_at, self._floor, tuple(sorted(self._done)), self._identity if self._fd >= 0 else (0, 0),
            self._boot if self._same_boot else "", self._clock.as_set,
        )  # fmt: skip

    # ---- what is lost

    def _since_ns(self) -> int | None:
        """Since when what was done may be missing: what is recorded in files that were read to their end was done before. None: not known."""
        since_ns = self._floor * 10**9
        return since_ns if self._same_boot and self._clock.tells(since_ns) else None

    def _lost(self, reason: str) -> None:
        self._on_lost(reason, self._since_ns())

    # ---- reading

    def poll(
        self, take: Callable[[Record], None], rolled: Callable[[], None], full: Callable[[], bool]
    ) -> bool:
        """Take in what the brick has recorded; False when stopped because ``full()``, with more to come.

        ``rolled`` is called between the records of one file and those of the next.
        """
        self._clock.watch()
        while True:
            if self._fd < 0 and not self._open_next():
                return True
            if not self._read(take, full):
                return False
            if not self._second and self._is_current():
                return True
            if not self._read(take, full):  # the rest, that came before it was renamed
                return False
            self._finish()
            rolled()

    def _read(self, take: Callable[[Record], None], full: Callable[[], bool]) -> bool:
        while not full():
            try:
                data = os.pread(self._fd, _CHUNK, self._offset)
                if not data or self._damaged:
                    return True
                if self._encoding is None:
                    self._encoding, self._offset = read_header(self._name, data)
                    continue
                base = self._offset
                for records, end in records_so_far(self._name, data, self._encoding):
                    for record in records:
                        take(record)
                    self._offset = base + end
                if self._offset == base:
                    return True
            except SegmentTorn:
                return True
            except SegmentDamaged:
                self._damaged = True
                self._lost("damaged")
                return True
        return False

    def _open_next(self) -> bool:
        """The next closed file, else CHANGELOG; False while there is none (the changelog is off, or just being rolled)."""
        new = self._new()
        if new and _identity_of(os.path.join(self.directory, "CHANGELOG")) is None:
            return False  # its name in HTIME is only written before the next one is there
        if new:
            return self._open(new[0].path, new[0].second)
        if not self._open(os.path.join(self.directory, "CHANGELOG"), 0):
            return False
        # It may have been rolled in between: then others come before what was opened.
        if any(each.ino != self._identity[0] for each in self._new()):
            self.close()
            return self._open_next()
        return True

    def _open(self, path: str, second: int) -> bool:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._identity = _identity(self._fd)
        self._name, self._second, self._offset, self._encoding, self._damaged = path, second, 0, None, False
        if not second and self._current_htime() == self._htime:
            closed_ns = os.stat(os.path.join(self.directory, "htime", self._htime)).st_ctime_ns
            if _identity_of(path) == self._identity:  # nothing was closed since
                self._check_began(closed_ns, 0)
        return True

    def _check_began(self, closed_ns: int, second: int) -> None:
        """Tell of the brick's end where the open file was not begun just after the last one before it was closed.

        ``closed_ns``: when that was, as far as HTIME says; ``second``: of the open file, 0 if it is CHANGELOG.
        """
        ino, born_ns = self._identity
        if self._began == self._identity:
            return
        self._began = self._identity
        before = [
            each for each in self._closed(self._floor) if each.ino != ino and not 0 < second <= each.second
        ]
        for each in before[-1:]:
            with contextlib.suppress(FileNotFoundError):
                closed_ns = max(closed_ns, os.stat(each.path).st_ctime_ns)
        if born_ns > closed_ns + _NEXT_NS:
            self._on_restart(closed_ns - _NEXT_NS if self._same_boot else None)

    def _is_current(self) -> bool:
        """Whether CHANGELOG is the open file still, or none is there yet to follow it."""
        there = _identity_of(os.path.join(self.directory, "CHANGELOG"))
        return there is None or there == self._identity

    def _finish(self) -> None:
        """The open file is at its end, and another one is CHANGELOG."""
        try:
            self._check_htime()
        except _ChangelogWasOff:
            since_ns = self._since_ns()
            self.close()
            self.begin_at_end()
            self._on_lost("changelog off", since_ns)
            return
        if os.fstat(self._fd).st_size > self._offset:
            self._lost("damaged")  # what came after the damage; or a record that was never written to its end
        second = self._second or next(
            (each.second for each in self._new() if each.ino == self._identity[0]), 0
        )
        if second:
            before = [each for each in self._rolled if each < second]
            if before:
                self._check_began((before[-1] + 1) * 10**9, second)
            self._done.add((second, self._identity[0]))
            if second not in self._listed:
                self._on_restart(os.fstat(self._fd).st_mtime_ns if self._same_boot else None)
        self.close()
        if not self._new():
            self._same_boot = True
            self._floor = max([self._floor, *(each for each, _ in self._done)])
            self._done = {each for each in self._done if each[0] == self._floor}
            self._listed = {each: times for each, times in self._listed.items() if each >= self._floor}
            self._rolled = self._rolled[-1:]

    # ---- files

    def _new(self) -> list[_Closed]:
        return [each for each in self._closed(self._floor) if (each.second, each.ino) not in self._done]

    def _closed(self, floor: int) -> list[_Closed]:
        """Changelogs that are closed, from this second on, in order."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in self._folders(floor):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        second = entry.name.removeprefix(_PREFIX)
                        if entry.name.startswith(_PREFIX) and second.isdigit() and int(second) >= floor:
                            found.append(_Closed(int(second), entry.inode(), entry.path))
        return sorted(found)

    def _folders(self, floor: int) -> list[str]:
        """Folders of dates (YYYY/MM/DD) that may hold files from this second on; from 0 on: the last ones."""
        days = [
            day for year in _numbers(self.directory) for month in _numbers(year) for day in _numbers(month)
        ]
        if not floor:
            return days[-_DAYS:]
        # Days are those of the brick's own time zone, or the world's.
        first = time.strftime("%Y/%m/%d", time.gmtime(floor - _DAYS * 86400))
        return [day for day in days if day[len(self.directory) + 1 :] >= first]

    # ---- HTIME

    def _current_htime(self) -> str:
        return os.fsdecode(os.getxattr(os.path.join(self.directory, "htime"), _CURRENT)).rstrip("\0")

    def _size_of_htime(self) -> int:
        return os.stat(os.path.join(self.directory, "htime", self._htime or self._current_htime())).st_size

    def beat_ns(self) -> int:
        """When the brick last rolled its changelog: it does so every rollover-time, whatever happens. Raises OSError."""
        return os.stat(os.path.join(self.directory, "htime", self._htime)).st_mtime_ns

    def _last_rolled(self) -> list[int]:
        """The last second that HTIME had a name of, where it was read to; none if it had none."""
        with open(os.path.join(self.directory, "htime", self._htime), "rb") as file:
            file.seek(max(0, self._htime_at - _TAIL))
            entries = file.read(min(self._htime_at, _TAIL)).split(b"\0")
        return [second for entry in entries[-2:-1] if (second := _second_of(entry)) is not None]

    def _check_htime(self) -> None:
        """Read on in HTIME, and tell of what is missing. Raises _ChangelogWasOff."""
        if self._current_htime() != self._htime:
            raise _ChangelogWasOff
        with open(os.path.join(self.directory, "htime", self._htime), "rb") as file:
            file.seek(self._htime_at)
            data = file.read()
        entries = data.split(b"\0")
        self._htime_at += len(data) - len(entries.pop())
        there = {each.second for each in self._closed(self._floor)} | {second for second, _ in self._done}
        for entry in entries:
            second = _second_of(entry)
            if second is not None:
                self._rolled.append(second)
            if not os.path.basename(entry).startswith(_PREFIX.encode()):
                continue  # in lower case: it was empty
            if second is None:
                self._lost("damaged")
                continue
            self._listed[second] = self._listed.get(second, 0) + 1
            if self._listed[second] > 1 or second not in there:
                self._lost("damaged")


class _ChangelogWasOff(Exception):
    pass


def _second_of(entry: bytes) -> int | None:
    """Of a name in HTIME, in upper or lower case; None: it is none."""
    prefix, _, second = os.path.basename(entry).partition(b".")
    return int(second) if prefix.lower() == b"changelog" and second.isdigit() else None


def _numbers(folder: str) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        yield from (os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.isdigit())


def _identity(fd: int) -> tuple[int, int]:
    """Inode numbers are given out again at once; with the time of birth they are not."""
    stat = stat_at(fd, b"")
    return stat.ino, stat.btime_ns


def _identity_of(path: str) -> tuple[int, int] | None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    try:
        return _identity(fd)
    finally:
        os.close(fd)
