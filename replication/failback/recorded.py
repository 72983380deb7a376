"""What was changed on a promoted root, as it was recorded since: the names and objects in the changelog of its way back.

A record adds to what times tell, and takes nothing away from it: where there is none, or a gap, times alone have to do.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.changelog.index import State
from replication.changelog.record import Kind, SegmentDamaged
from replication.changelog.store import ChangelogStore, SegmentDropped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from replication.changelog.index import SegmentInfo
    from replication.changelog.record import Segment
    from replication.failback.promoted import PromotedRoot
    from replication.session import Recording, SessionDir

_SOON_NS = 10 * 10**9  # between a promotion and the begin of its recording
_BARRIER_S = 30.0


class Mention(NamedTuple):
    """A name in a directory, by its gfid; or an object, by its own, which has an empty one. ``ours``: it is in the volume; an
    object that is no directory may be anywhere on its file system.
    """

    at: bytes
    name: bytes
    kinds: int
    ours: bool


class Recorded:
    """The changelog of a promoted root from its promotion on, as far as it was not read yet. Close it.

    ``whole``: nothing is missing in what was read.
    """

    def __init__(self, changelog: Path, begun: Recording) -> None:
        self.whole = True
        self._since_ns: int | None = None
        self._begun = begun
        self._at = begun.position
        self._store = ChangelogStore(changelog)

    def close(self) -> None:
        self._store.close()

    @property
    def since_ns(self) -> int | None:
        """When recording began, as far as was read; None: there is nothing yet."""
        if self._since_ns is None and self._begun.position and self.whole:  # somebody recorded already
            return self._begun.since_ns
        return self._since_ns

    def catch_up(self) -> None:
        """Have what was changed until now in the changelog, if somebody records."""
        with suppress(AgentUnreachable, AgentRefused):
            agent_call(self._store.directory, "barrier", timeout=_BARRIER_S)

    def read(self) -> Iterator[Mention]:
        """What is in positions that were not read yet; what cannot be read is missing."""
        try:
            following, last = self._store.segments(self._at), self._store.last_closed()
        except OSError:
            self.whole = False
            return
        if self._at and (last is None or last.number < self._at):
            self.whole = False  # it is another changelog by now
        for info in following:
            self._note(info)
            if info.state is State.DATA:
                try:
                    yield from _mentions(self._store.read_records(info.number))
                except (SegmentDropped, SegmentDamaged, OSError):
                    self.whole = False
            self._at = info.number

    def _note(self, info: SegmentInfo) -> None:
        first = self._since_ns is None
        if first:
            self._since_ns = info.end_ns if info.state is State.GAP else self._begun.since_ns
        if info.state is State.GAP:
            # Nobody records yet at the moment of a promotion.
            at_once = first and info.reason != "limit" and info.end_ns <= self._begun.since_ns + _SOON_NS
            self.whole = self.whole and at_once
        elif info.number > self._at + 1 and (self._at or info.start_ns > self._begun.since_ns):
            self.whole = False  # what came before it was dropped


def _mentions(segment: Segment) -> Iterator[Mention]:
    for record in segment:
        kinds = int(record.kinds & ~Kind.B)
        if record.parent is not None and record.name is not None:
            yield Mention(record.parent, record.name, kinds, True)
        elif record.gfid is not None and kinds:
            yield Mention(record.gfid, b"", kinds, record.gfid in segment.dirs)


@dataclass(frozen=True, slots=True)
class Changes:
    """How many names were recorded. ``since``: seconds since the epoch; None: none are. ``at_least``: there may be more."""

    names: int
    since: float | None
    at_least: bool


class Count:
    """Counts on from where it was; a name that was changed often is one. Memory is bounded by ``most``, the time of a look by
    ``budget_s``.
    """

    def __init__(self, changelog: Path, begun: Recording, most: int = 100_000, budget_s: float = 1.0) -> None:
        self.begun = begun
        self._budget_s = budget_s
        self._recorded = Recorded(changelog, begun)
        self._most = most
        self._names: set[int] = set()

    def look(self) -> Changes:
        recorded, until = self._recorded, time.monotonic() + self._budget_s
        full = len(self._names) >= self._most
        if not full:
            for mention in recorded.read():
                if mention.ours:
                    self._names.add(hash((mention.at, mention.name)))
                full = len(self._names) >= self._most or time.monotonic() > until
                if full:
                    break
        since = recorded.since_ns
        if since is None:
            return Changes(len(self._names), None, at_least=True)
        return Changes(len(self._names), since / 1e9, full or not recorded.whole)


def recorded_of(place: SessionDir, root: PromotedRoot) -> Recorded | None:
    """What the session of the way back has recorded since the root was promoted; None: nothing. Raises SeamarkError."""
    state = place.state()
    begun = state.recording if state is not None else None
    if begun is None or begun.term != root.term or not place.changelog.is_dir():
        return None
    return Recorded(place.changelog, begun)
