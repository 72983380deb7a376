"""The state of a session as its own process last saw it: written often, read by whoever asks.

It lies in the state directory, so it can be read while Redis, the secondary or the session itself is
away; its age tells how true it still is.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from scheduler.snapshot import Phase, ProgressSnapshot

if TYPE_CHECKING:
    from pathlib import Path

    from replication.session import SessionDir

EVERY_S = 1.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One look. ``time``: seconds since the epoch. ``reason``: why it does not work, when it does not."""

    time: float
    pid: int
    node: str
    snapshot: ProgressSnapshot
    reason: str = ""


def _path(place: SessionDir) -> Path:
    return place.path / "status.json"


class StatusFile:
    """Writes the reports of one session: when something changes that people wait for, and each second."""

    def __init__(self, place: SessionDir) -> None:
        self._path = _path(place)
        self._last: tuple[object, ...] = ()
        self._due = 0.0

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Note what the session looks like now. Cheap: may be called as often as one likes."""
        news = (snapshot.phase, snapshot.crawl, snapshot.state, snapshot.failures)
        if news == self._last and time.monotonic() < self._due:
            return
        self._last, self._due = news, time.monotonic() + EVERY_S
        self._write(snapshot, "")

    def failed(self, reason: str) -> None:
        """Note why the session cannot be run at the moment."""
        self._write(ProgressSnapshot(phase=Phase.FAILED), reason)

    def _write(self, snapshot: ProgressSnapshot, reason: str) -> None:
        report = Report(
            time=time.time(), pid=os.getpid(), node=os.uname().nodename, snapshot=snapshot, reason=reason
        )
        aside = self._path.with_suffix(".new")
        aside.write_bytes(msgspec.json.encode(report))  # not synced: it is worth nothing after a crash
        aside.replace(self._path)


def last_report(place: SessionDir) -> Report | None:
    """What the session's process said last; None when there is nothing that can be read."""
    try:
        return msgspec.json.decode(_path(place).read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError):
        return None
