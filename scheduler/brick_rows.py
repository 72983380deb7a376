"""The bricks of a Gluster volume, as `status` shows them: a row for each, in the order of the volume's information."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from replication.changelog.brickstatus import last_rows

if TYPE_CHECKING:
    from pathlib import Path

_SILENT_S = 30.0  # who records says something every few seconds


class BrickReport(msgspec.Struct, frozen=True, kw_only=True):
    """One brick. ``set``: bricks with the same number hold the same files. ``status``: see docs/gluster.md.

    ``crawl_status`` and ``last_synced`` are the session's, of bricks that are active. ``age_s``: since its node said something.
    """

    node: str
    brick: str
    set: int
    status: str
    crawl_status: str = "N/A"
    last_synced: float | None = None
    followed: bool = False
    reason: str = ""
    age_s: float | None = None


def brick_reports(
    changelog: Path, status: str, crawl_status: str, last_synced: float | None, *, records: bool
) -> tuple[BrickReport, ...]:
    """``status``: the session's, which is that of each brick where nobody ``records`` at the moment. Empty: it has no bricks."""
    known = last_rows(changelog)
    if known is None:
        return ()
    now = time.time()
    silent = not records or now > known.time + _SILENT_S
    return tuple(
        BrickReport(
            node=row.node, brick=row.path, set=row.set, status=status if silent else row.status,
            crawl_status=crawl_status if row.status == "Active" and not silent else "N/A",
            last_synced=last_synced if row.status == "Active" else None, followed=row.followed and not silent,
            reason="" if silent else row.reason,
            age_s=None if row.heard is None else round(max(0.0, now - row.heard), 1),
        )
        for row in known.bricks
    )  # fmt: skip
