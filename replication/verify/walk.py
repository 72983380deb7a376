"""One unit of a walk: some directories, each in parts, compared with what stands on the secondary.

A part is a range of a directory's names. The far side is asked for digests of the next parts while this side reads
its own; only where they differ rows travel. What differs is a suspect: it may have changed, or be on its way, so a
second look decides (looks.py).
"""

from __future__ import annotations

import dataclasses
import os
import stat
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replication.secondary.inspection import PIECE, digest_rows
from replication.verify.compare import Difference
from replication.verify.ends import RESERVED, Ends, open_directory, rows_of
from replication.verify.looks import Suspect, stamp
from replication.verify.totals import Totals
from replication.volume.handle import stat_at

if TYPE_CHECKING:
    from concurrent.futures import Future

    from replication.remote.answers import Reply
    from replication.secondary.inspection import Row

PART_NAMES = 1000
_PART_BYTES = 16 << 20
_BATCH_DIRS = 64  # directories in one request
_ASKED = 4
_UNIT_S = 2.0
_UNIT_NAMES = 20_000
_UNIT_SUSPECTS = 2000
_DIVIDE = 8
ROOT_NAME = b"."  # the root's own attributes, as a name in it


@dataclass(slots=True)
class Part:
    """Names of one open directory, from ``first`` to before ``end``."""

    fd: int
    path: bytes
    first: bytes
    end: bytes | None = None
    names: list[bytes] = field(default_factory=list)
    also: list[bytes] = field(default_factory=list)
    but: list[bytes] = field(default_factory=list)
    size: int = 0
    explicit: bool = False

    def rest(self, first: bytes) -> Part:
        """The same from another name on; the descriptor stays this one's."""
        return dataclasses.replace(self, first=first)

    def asked(self) -> dict[str, Any]:
        """What the far side is asked for."""
        path = os.fsdecode(self.path)
        if self.explicit:
            return {"path": path, "names": [os.fsdecode(name) for name in self.names]}
        asked: dict[str, Any] = {"path": path, "first": os.fsdecode(self.first)}
        if self.end is not None:
            asked["end"] = os.fsdecode(self.end)
        for key in ("also", "but"):
            if names := getattr(self, key):
                asked[key] = [os.fsdecode(name) for name in names]
        return asked


class Walk:
    """Compares directories until the unit's budget is used up; ``queue`` is then what is left, (path, first name)."""

    def __init__(self, ends: Ends, queue: list[tuple[bytes, bytes]], *, list_equal: bool = False) -> None:
        self.ends = ends
        self.queue = queue
        self.totals = Totals(list_equal=list_equal)
        self.suspects: list[Suspect] = []
        self.links: list[tuple[bytes, int, int]] = []  # path, inode here, inode there; 0: it has one name
        self._asked: deque[tuple[Future[Reply], list[Part]]] = deque()
        self._listing: tuple[bytes, list[bytes]] = (b"", [])

    def run(self, *, top: bool = False) -> None:
        """``top``: only until there is something to divide, so that others can help."""
        until = time.monotonic() + _UNIT_S
        try:
            while self.queue and time.monotonic() < until and not self._enough():
                parts = self._gather()
                if parts:
                    self._asked.append((self.ends.ask([part.asked() for part in parts]), parts))
                self._take(_ASKED)
                self.ends.alive()
                if top and len(self.queue) >= _DIVIDE:
                    break
            self._take(0)
        finally:
            for _, parts in self._asked:
                _close(parts)

    def _enough(self) -> bool:
        return self.totals.names >= _UNIT_NAMES or len(self.suspects) >= _UNIT_SUSPECTS

    # ---- what is asked for

    def _gather(self) -> list[Part]:
        """Parts for one request: of many small directories, or one of a large one."""
        parts: list[Part] = []
        names = size = 0
        while self.queue and len(parts) < _BATCH_DIRS and names < PART_NAMES and size < _PART_BYTES:
            path, first = self.queue.pop()
            for part in self._parts_of(path, first, PART_NAMES - names):
                parts.append(part)
                names += len(part.names)
                size += part.size
        return parts

    def _parts_of(self, path: bytes, first: bytes, room: int) -> list[Part]:
        """The next part of a directory; what is left of it goes back to the queue."""
        try:
            fd = open_directory(self.ends.volume, path)
            if fd is None:
                return []  # gone, or another thing by now: its own name tells
            names = self._names(fd, path, first)
        except OSError as error:
            self.suspects.append(_unlistable(path, f"on the primary: {error.strerror}"))
            return []
        part = Part(fd, path, first)
        below: list[tuple[bytes, bytes]] = []
        for name in names:
            if part.names and (len(part.names) >= room or part.size >= _PART_BYTES):
                part.end = name
                break
            self._add(part, name, below)
        if part.end is not None:
            self.queue.append((path, part.end))
        self.queue += below  # depth first: what is left of this directory waits below
        if not path and not first and self.ends.manner.takes(ROOT_NAME):
            root = Part(os.dup(fd), path, b"", names=[ROOT_NAME], explicit=True)
            return [root, part]
        return [part]

    def _names(self, fd: int, path: bytes, first: bytes) -> list[bytes]:
        """Names from ``first`` on. The list of the last directory is kept: a large one comes in many parts."""
        if not first or self._listing[0] != path:
            self._listing = (path, self.ends.volume.names(fd, is_root=not path))
        listed = self._listing[1]
        return listed[bisect_left(listed, first) :] if first else listed

    def _add(self, part: Part, name: bytes, below: list[tuple[bytes, bytes]]) -> None:
        """Whether and how a name is compared."""
        ends = self.ends
        try:
            s = os.stat(name, dir_fd=part.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        is_dir = stat.S_ISDIR(s.st_mode)
        if ends.left_out(part.path, name, is_dir=is_dir):
            self.totals.excluded += 1
            return
        path = os.path.join(part.path, name)
        mounted = is_dir and stat_at(part.fd, name).mount_root
        if is_dir and not mounted:
            below.append((path, b""))
        if s.st_ctime_ns >= ends.changed_before_ns:
            self.totals.young += 1
            part.but.append(name)
            return
        linked = s.st_nlink > 1 and not is_dir
        taken, by_path = ends.manner.takes(b"%d" % s.st_ino if linked else path), ends.manner.takes(path)
        if taken:
            part.names.append(name)
            if not by_path:
                part.also.append(name)
            if stat.S_ISREG(s.st_mode) and s.st_size <= PIECE and ends.manner.content:
                part.size += s.st_size
        elif by_path:
            part.but.append(name)

    # ---- what is answered

    def _take(self, leave: int) -> None:
        """Compare the parts that were asked for, until at most ``leave`` requests are outstanding."""
        while len(self._asked) > leave:
            future, parts = self._asked.popleft()
            try:
                mine = [self._own_rows(part) for part in parts]
                self._compare(list(zip(parts, mine, strict=True)), future)
            finally:
                _close(parts)

    def _own_rows(self, part: Part) -> list[Row]:
        rows = []
        for name in part.names:
            row = self.ends.row(part.fd, name)
            if row is not None:
                rows.append(row)
                if row.in_pieces:
                    self.ends.alive()
        self.ends.alive()
        return rows

    def _compare(self, mine: list[tuple[Part, list[Row]]], asked: Future[Reply]) -> None:
        """Parts, with the rows of this side, and what the far side makes of them."""
        differing, rest = [], []
        for (part, rows), answer in zip(mine, asked.result().header["parts"], strict=True):
            if answer is not None and answer.get("upto") is not None:  # it read enough for one request
                stop = os.fsencode(answer["upto"])
                rest.append((part.rest(stop), [row for row in rows if row.name >= stop]))
                rows[:] = [row for row in rows if row.name < stop]
                part.end = stop
            if not self._settle(part, rows, answer):
                differing.append((part, rows))
        if differing:
            self._look_closer(differing)
        if rest:
            self._compare(rest, self.ends.ask([part.asked() for part, _ in rest]))

    def _settle(self, part: Part, rows: list[Row], answer: dict[str, Any] | None) -> bool:
        """Whether a part is equal; then it is counted, and contents in pieces are compared."""
        if answer is None or "errno" in answer or any(row.error for row in rows):
            return False
        if answer["digest"] != digest_rows(rows):
            return False
        there = {os.fsencode(name): ino for name, ino in answer["links"]}
        for row in rows:
            if row.in_pieces and self.ends.manner.content:
                self._judge(part, row, row)
            else:
                self.totals.equal(part.path, row, self.ends.manner)
            self._note_links(part.path, row, there.get(row.name, 0))
        return True

    def _look_closer(self, differing: list[tuple[Part, list[Row]]]) -> None:
        asked = [part.asked() for part, _ in differing]
        reply = self.ends.ask(asked, rows=True).result()
        for (part, mine), there in zip(differing, rows_of(reply), strict=True):
            if isinstance(there, int):
                self.suspects.append(_unlistable(part.path, f"on the secondary: {os.strerror(there)}"))
                continue
            theirs = there or {}
            rows = {row.name: row for row in mine}
            for name in sorted(rows.keys() | theirs.keys()):
                if name == RESERVED and not part.path:
                    continue
                here, far = rows.get(name), theirs.get(name)
                self._judge(part, here, far)
                if here is not None and far is not None and here.kind == far.kind:
                    self._note_links(part.path, here, far.ino if far.nlink > 1 else 0)

    def _judge(self, part: Part, here: Row | None, there: Row | None) -> None:
        kind, detail, row = self.ends.compare(part.fd, part.path, here, there)
        if kind is None:
            if row is not None:
                self.totals.equal(part.path, row, self.ends.manner)
            return
        path = os.path.join(part.path, (here or there).name)  # type: ignore[union-attr]
        self.suspects.append(Suspect(path, kind, detail, stamp(part.fd, here), stamp(None, there)))

    def _note_links(self, directory: bytes, row: Row, there: int) -> None:
        if row.kind != "d" and (row.nlink > 1 or there):
            self.links.append((os.path.join(directory, row.name), row.ino if row.nlink > 1 else 0, there))


def _unlistable(path: bytes, why: str) -> Suspect:
    return Suspect((path or ROOT_NAME) + b"/", Difference.UNREADABLE, why)


def _close(parts: list[Part]) -> None:
    for part in parts:
        if part.fd >= 0:
            os.close(part.fd)
            part.fd = -1
