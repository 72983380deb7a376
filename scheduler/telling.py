"""What the secondary is told of the primary, and keeps: on the day of a failover nobody else can say it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from scheduler.status_file import Backlog, last_report

if TYPE_CHECKING:
    from replication.remote.client import SecondaryClient
    from replication.session import SessionDir

_AGAIN_S = 60.0  # the same is told again, so that its age says whether the primary lived
_told: dict[str, tuple[float, Told]] = {}  # by session, of this process


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """How far behind the secondary was. ``at``: seconds since the epoch, by the primary's clock."""

    at: float = 0.0
    lag_s: float | None = None
    backlog: Backlog = Backlog()
    failures: int = 0
    skipped: int = 0


def tell(place: SessionDir, client: SecondaryClient) -> None:
    """Tell it, if that is not what it was told last. Raises SecondaryError, LinkLost."""
    report = last_report(place)
    if report is None:
        return
    snapshot = report.snapshot
    backlog = msgspec.structs.replace(report.backlog, age_s=None)
    now = Told(backlog=backlog, failures=snapshot.failures, skipped=snapshot.skipped)
    when, before = _told.get(place.name, (0.0, None))
    if now == before and time.monotonic() - when < _AGAIN_S:
        return
    said = msgspec.structs.replace(now, at=report.time, lag_s=snapshot.lag_s)
    client.call("tell", text=msgspec.json.encode(said).decode())
    _told[place.name] = (time.monotonic(), now)


def read(text: str | None) -> Told | None:
    """What such a text says; None: nothing was told, or nothing that can be read."""
    try:
        return msgspec.json.decode(text or "", type=Told)
    except msgspec.DecodeError:
        return None
