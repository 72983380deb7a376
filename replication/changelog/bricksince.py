"""What of the bricks changed since a time, by the ctimes of their own inodes: a search in small steps, that is never forgotten."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from replication.changelog.brickctimes import changed
from replication.session_file import replace_file

log = logging.getLogger(__name__)

_STEP_S = 0.03
_RETRY_S = 10.0
_MARGIN_NS = 2_000_000_000  # clocks tick, and a segment's end is a little after what it holds


class Wanted(msgspec.Struct, frozen=True):
    """What changed since ``since_ns`` (None: nothing of that), and what changed since ``unexplained_ns`` otherwise than clients can see.

    By this node's clock.
    """

    since_ns: int | None
    unexplained_ns: int

    def and_of(self, other: Wanted) -> Wanted:
        since = [each.since_ns for each in (self, other) if each.since_ns is not None]
        return Wanted(min(since, default=None), min(self.unexplained_ns, other.unexplained_ns))


class SinceScan:
    """Durable until what it found is: ``kept`` holds what is wanted then.

    ``fd`` is readable as long as there is more to do on this node; ``elsewhere`` are bricks that others search, and have
    not searched yet; ``unread`` are paths of bricks of this node that could not be read to their end: they are tried again.
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._searched = kept.with_name("bricks.searched")  # when the last search that came to its end began
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.elsewhere: set[str] = set()
        self.unread: set[str] = set()
        self._retry_at = 0.0  # time.monotonic()
        self.wanted: Wanted | None = None
        self._found: Iterator[bytes] | None = None
        self._here = False  # there is more to do on this node
        self._ended = self._covered = False
        self._began_ns = time.time_ns()
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self._start(msgspec.json.decode(kept.read_bytes(), type=Wanted))

    @property
    def pending(self) -> bool:
        """Whether there is something that was not found yet."""
        return self.wanted is not None and not (self._ended and not self.unread)

    def begin(self, since_ns: int | None, elsewhere: Iterable[str] = ()) -> None:
        """Look for what changed since then (less a margin), and for what no record tells of, since the last search. Raises SeamarkError.

        One that is under way begins again, and is for what was wanted of it, too.
        """
        wanted = Wanted(None if since_ns is None else since_ns - _MARGIN_NS, self._last_ns() - _MARGIN_NS)
        if self.wanted is not None:
            wanted = wanted.and_of(self.wanted)
        replace_file(self._kept, msgspec.json.encode(wanted).decode())
        self.elsewhere = set(elsewhere)
        self._start(wanted)

    def explained(self, until_ns: int) -> None:
        """All that was there then is looked at by others; nothing, where a search was made before. Raises SeamarkError."""
        if not self._searched.exists():
            replace_file(self._searched, str(until_ns))

    def _last_ns(self) -> int:
        """When the last search began; 0: there was none, and who only scanned has seen no more than clients do."""
        try:
            return int(self._searched.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def _start(self, wanted: Wanted) -> None:
        if not self._here:
            os.eventfd_write(self.fd, 1)
        self.wanted, self._found, self._here, self._began_ns = wanted, None, True, time.time_ns()
        self._ended = self._covered = False
        self.unread.clear()

    def some(self, bricks: list[str]) -> list[bytes]:
        """The next gfids of what is on this node, found in a few hundredths of a second. Raises SeamarkError."""
        if self._ended and self.unread and self.wanted is not None and time.monotonic() > self._retry_at:
            self._start(self.wanted)
        if self.wanted is None or self._ended:
            return []
        some = []
        if self._here:
            if self._found is None:
                self._found = self._changed(bricks, self.wanted)
            until = time.monotonic() + _STEP_S
            for gfid in self._found:
                if gfid:
                    some.append(gfid)
                if time.monotonic() > until:
                    return some
            self._here, self._found, self._retry_at = False, None, time.monotonic() + _RETRY_S
            os.eventfd_read(self.fd)
        self._ended = not self.elsewhere
        return some

    def cover(self) -> None:
        """All that was found by now is in the open segment."""
        self._covered = self._ended and not self.unread

    def settle(self) -> None:
        """What was in the open segment when it was covered is durable: a search that had come to its end by then is forgotten.

        Raises SeamarkError.
        """
        if self._covered:
            replace_file(self._searched, str(self._began_ns))
            self._kept.unlink(missing_ok=True)
            self.wanted, self._ended, self._covered = None, False, False

    def close(self) -> None:
        os.close(self.fd)

    def _changed(self, bricks: list[str], wanted: Wanted) -> Iterator[bytes]:
        for brick in bricks:
            try:
                yield from changed(brick, wanted.since_ns, wanted.unexplained_ns)
            except OSError as error:
                log.warning("brick %s cannot be searched: %s", brick, error.strerror)
                self.unread.add(brick)
