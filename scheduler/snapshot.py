"""How far a session is, at one moment. Made by the monitor, shown by seamark.progress.

``scheduler.opening.run(options, show)`` calls ``show`` a few times a second, from its main thread; what is
shown how often, and where, is decided there. Everything else that a person should know goes to logging.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Crawl(StrEnum):
    """Where the work comes from at the moment."""

    NONE = "none"
    HYBRID = "hybrid"  # a scan of the tree
    HISTORY = "history"  # changelogs of the time when nobody was working on them
    CHANGELOG = "changelog"  # live changelogs


class Phase(StrEnum):
    """What a run is doing, as a whole."""

    STARTING = "starting"
    RUNNING = "running"  # there is work
    IDLE = "idle"  # everything known is on the secondary; waiting for changes
    PASSIVE = "passive"  # another node does it
    STOPPING = "stopping"
    FINISHED = "finished"  # the only phase which may say 100 %
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSnapshot:
    """Counts are of this run. Times are seconds since the epoch; rates are per second, recent."""

    phase: Phase = Phase.STARTING
    crawl: Crawl = Crawl.NONE
    state: str = ""  # a few words for people: "waiting for backup@host: connection refused, next try in 8 s"
    scanned: int = 0  # names looked at on the primary
    entries_done: int = 0  # names brought in line on the secondary
    files_done: int = 0  # files whose data arrived
    files_total: int = 0  # known so far to need data, those done included
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_sent: int = 0  # of content that had to travel
    rate_bytes_s: float = 0.0
    files_s: float = 0.0
    eta_s: float | None = None  # None: not known
    lag_s: float | None = None  # how old the oldest change is that is not on the secondary
    failures: int = 0  # items on the failure list
    skipped: int = 0  # what failed, and a person does without
    stime: float | None = None  # the mark

    @property
    def finished(self) -> bool:
        return self.phase is Phase.FINISHED

    def fraction(self) -> float | None:
        """Share of the known work that is done, by bytes and files; None: not known, or idle.

        Bytes and files are averaged, because a million tiny files cost more than their bytes say.
        """
        if self.finished:
            return 1.0
        if self.phase is Phase.IDLE:  # all of what is known: not a share of anything
            return None
        parts = []
        if self.files_total > 0:
            parts.append(self.files_done / self.files_total)
        if self.bytes_total > 0:
            parts.append(self.bytes_done / self.bytes_total)
        if not parts:
            return None
        return min(sum(parts) / len(parts), 1.0)
