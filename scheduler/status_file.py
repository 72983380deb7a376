"""The state of a session as its own process last saw it: written each second, read by whoever asks.

It lies in the state directory, so it can be read while Redis, the secondary or the session itself is
away. What it says stays the last that is known; its age, on a clock that nobody sets, tells how true
it still is.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import msgspec

from replication.secondary.boot import boot_id
from replication.session import node_name
from replication.session_file import drop_asides
from scheduler.health import Reason
from scheduler.lease import Holder
from scheduler.procfs import me, namespace, uptime
from scheduler.snapshot import Phase, ProgressSnapshot

if TYPE_CHECKING:
    from pathlib import Path

    from replication.session import SessionDir


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What is not on the secondary yet, as far as is known. ``entries``: None while a crawl looks for them."""

    entries: int | None = None
    files: int = 0
    bytes: int = 0
    age_s: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One look. ``time``: seconds since the epoch; ``uptime``: since boot ``boot``; ``born`` and
    ``space``: see procfs.

    ``failed``: why the session's process could not go on; it stays until one is at work again.
    """

    time: float
    uptime: float
    boot: str
    pid: int
    born: int
    space: str = ""
    node: str
    snapshot: ProgressSnapshot
    detector: str = ""
    backlog: Backlog = Backlog()
    reasons: tuple[Reason, ...] = ()
    counters: dict[str, int] = {}
    rpo_s: int | None = None
    failed: str = ""
    active: Holder | None = None  # who is at work, where several nodes may be

    def age(self) -> float:
        """Seconds since it was written."""
        if self.boot == boot_id():
            return max(0.0, uptime() - self.uptime)
        return max(0.0, time.time() - self.time)


def _clean(text: str) -> str:
    """Without lone surrogates, which stand for stray bytes of names: JSON as it is read here has none."""
    return text.encode(errors="backslashreplace").decode()


def _path(place: SessionDir) -> Path:
    return place.path / "status.json"


class StatusFile:
    """Writes the reports of one session, from its own process."""

    def __init__(self, place: SessionDir) -> None:
        self._place = place
        drop_asides(place.path, "status.*.new")
        self._boot = boot_id()
        self._space = namespace()

    def write(self, snapshot: ProgressSnapshot, **fields: Any) -> Report:
        """Note what the session looks like now."""
        pid, born = me()
        snapshot = dataclasses.replace(snapshot, state=_clean(snapshot.state))
        fields["failed"] = _clean(fields.get("failed", ""))
        fields["reasons"] = tuple(
            msgspec.structs.replace(reason, text=_clean(reason.text)) for reason in fields.get("reasons", ())
        )
        report = Report(
            time=time.time(), uptime=uptime(), boot=self._boot, pid=pid, born=born, space=self._space, node=node_name(),
            snapshot=snapshot, **fields,
        )  # fmt: skip
        path = _path(self._place)
        aside = path.with_suffix(f".{pid}.new")
        aside.write_bytes(msgspec.json.encode(report))  # not synced: it is worth nothing after a crash
        aside.replace(path)
        return report

    def starting(self) -> None:
        """Note that a process begins: what an earlier one knew stays."""
        self._again(Phase.STARTING, None)

    def failed(self, why: str) -> None:
        """Note why the session cannot be run at the moment."""
        self._again(Phase.FAILED, why)

    def _again(self, phase: Phase, failed: str | None) -> None:
        last = last_report(self._place)
        if last is None:
            self.write(ProgressSnapshot(phase=phase), failed=failed or "")
            return
        snapshot = dataclasses.replace(
            last.snapshot, phase=phase, state="", rate_bytes_s=0.0, files_s=0.0, eta_s=None
        )
        self.write(
            snapshot, detector=last.detector, backlog=last.backlog, reasons=tuple(r for r in last.reasons if r.code == "failures"), counters=last.counters,
            rpo_s=last.rpo_s, failed=last.failed if failed is None else failed,
        )  # fmt: skip


def last_report(place: SessionDir) -> Report | None:
    """What the session's process said last; None when there is nothing that can be read."""
    try:
        return msgspec.json.decode(_path(place).read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError):
        return None
