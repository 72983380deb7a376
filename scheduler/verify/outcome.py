"""What came of a comparison: figures, rows, and an exit code."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from replication.errors import ExitCode
from replication.verify.compare import EQUAL, Difference, symbol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.verify.store import Store

_DIFFERENT = ("differs", "mended")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a comparison, done or not. Times: seconds since the epoch.

    ``names``: compared and equal, ``contents`` of them by content. ``differences``: what is left, by kind, ``mended``:
    what was and is equal by now. ``unsettled``: changed all the while, or is still on its way: not judged.
    """

    phase: str
    started: float
    ended: float | None = None
    names: int = 0
    contents: int = 0
    bytes: int = 0
    excluded: int = 0
    young: int = 0
    digest: str = ""
    hash: str = ""
    suspects: int = 0
    differences: dict[str, int] = {}
    mended: dict[str, int] = {}
    displaced: int = 0
    unreadable: int = 0
    unsettled: int = 0

    @property
    def different(self) -> int:
        return sum(self.differences.values())

    @property
    def exit_code(self) -> ExitCode:
        if self.different:
            return ExitCode.DIFFERENT
        return ExitCode.PARTIAL if self.unreadable else ExitCode.OK


def outcome(store: Store) -> Outcome:
    """The figures as they are now."""
    totals = store.totals()
    return Outcome(
        phase=store.get("phase"), started=store.get("started"), ended=store.get("ended"), names=totals["names"],
        contents=totals["contents"], bytes=totals["bytes"], excluded=totals["excluded"], young=totals["young"],
        digest=totals["digest"], hash=store.get("manner", {}).get("hash", ""),
        suspects=sum(store.count(state) for state in ("wait", "out", "mend", "checked", "partner")),
        differences=store.by_kind("differs"), mended=store.by_kind("mended"), displaced=store.get("displaced", 0),
        unreadable=store.count("unreadable"), unsettled=store.count("unsettled"),
    )  # fmt: skip


def rows(store: Store, *, unsettled: bool = False) -> Iterator[dict[str, Any]]:
    """What is to be told, in the order of paths: kind, path, detail, and whether it was mended.

    ``unsettled``: also what was not judged.
    """
    for state in ("differs", "mended", "unreadable", *(["unsettled"] if unsettled else [])):
        for row in store.rows(state):
            yield {
                "kind": "UNSETTLED" if state == "unsettled" else str(row.kind or Difference.UNREADABLE), "path": os.fsdecode(row.path), "detail": row.detail,
                "mended": state == "mended",
            }  # fmt: skip


def combined(store: Store) -> Iterator[str]:
    """A line for each name that was compared, as `rclone check --combined` has them; only where all were noted."""
    for (path,) in store.db.execute("SELECT path FROM equal EXCEPT SELECT path FROM suspect ORDER BY path"):
        yield f"{EQUAL} {os.fsdecode(bytes(path))}"
    for state in (*_DIFFERENT, "unreadable"):
        for row in store.rows(state):
            mark = EQUAL if state == "mended" else symbol(row.kind or Difference.UNREADABLE)
            yield f"{mark} {os.fsdecode(row.path)}"
