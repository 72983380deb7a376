"""A session as its page shows it: the report's numbers as text, each with the number itself beside it.

All text is free of control characters and stray bytes (``shown``); the templates escape it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replication import checkpoints, failures
from replication.session import SessionDir
from scheduler import history
from scheduler.reports import REPORT_S, Status, session_report, session_reports
from seamark.pages.charts import SPANS, sparkline
from seamark.progress import text
from seamark.progress.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.reports import SessionReport

_FAILURES_SHOWN = 50
_CHECKPOINTS_SHOWN = 10
_ORDER = {False: 0, True: 1, None: 2}
_TONES = {
    Status.ACTIVE: "good", Status.PASSIVE: "good", Status.FAULTY: "bad", Status.PAUSED: "odd",
    Status.INITIALIZING: "busy", Status.RECORDING: "odd",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number. ``value``: as a machine reads it, as `status --json` has it under ``field``; empty: not known."""

    field: str
    label: str
    text: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """One reason why a session is not healthy."""

    code: str
    text: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One session. ``healthy``: yes, no, or empty: not meant to run. ``spark`` is markup."""

    name: str
    status: str
    tone: str
    healthy: str
    crawl: str
    reasons: tuple[Why, ...]
    primary: str
    secondary: str
    as_of: str
    tiles: tuple[Tile, ...]
    spark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRow:
    path: str
    step: str
    error: str
    tries: int
    first: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    asked: str
    time: str
    reached: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One session in full. ``counters``: names and numbers since the session's process began to count."""

    card: Card
    facts: tuple[tuple[str, str], ...]
    failures: tuple[FailureRow, ...]
    more_failures: int
    checkpoints: tuple[CheckpointRow, ...]
    counters: tuple[tuple[str, str], ...]


def cards(state_dir: str) -> list[Card]:
    """All sessions: first those that are not healthy, last those that are not meant to run."""
    reports = sorted(session_reports(state_dir), key=lambda report: _ORDER[report.healthy])
    return [_card(report, SessionDir(Path(state_dir), report.name)) for report in reports]


def detail(state_dir: str, name: str) -> Detail:
    """One session. Raises NotFoundError."""
    report = session_report(state_dir, name)
    place = SessionDir(Path(state_dir), name)
    oldest = failures.read(place.progress, _FAILURES_SHOWN)
    asked = checkpoints.read(place.progress)[-_CHECKPOINTS_SHOWN:]
    return Detail(
        card=_card(report, place),
        facts=tuple(_facts(report)),
        failures=tuple(_failure(failure) for failure in oldest),
        more_failures=max(0, report.failures - len(oldest)),
        checkpoints=tuple(_checkpoint(checkpoint) for checkpoint in reversed(asked)),
        counters=tuple(
            (shown(counter.replace("_", " ")), text.number(count))
            for counter, count in sorted(report.counters.items())
        ),
    )


def _card(report: SessionReport, place: SessionDir) -> Card:
    away = report.age_s is not None and report.age_s > REPORT_S and report.healthy is not None
    return Card(
        name=shown(report.name),
        status=report.status,
        tone=_TONES.get(report.status, ""),
        healthy={True: "yes", False: "no", None: ""}[report.healthy],
        crawl="" if report.crawl_status == "N/A" else report.crawl_status,
        reasons=tuple(_reasons(report)),
        primary=shown(report.primary_brick),
        secondary=shown(report.secondary),
        as_of=text.duration(report.age_s) if away else "",
        tiles=tuple(_tiles(report, away=away)),
        spark=sparkline(past) if (past := history.read(place, SPANS["1h"])) else "",
    )


def _reasons(report: SessionReport) -> Iterator[Why]:
    for reason in report.reasons:
        yield Why(code=reason.code, text=shown(reason.text), since=_moment(reason.since))
    if report.reason and not report.reasons:
        yield Why(code="", text=shown(report.reason), since="")


def _tiles(report: SessionReport, *, away: bool) -> Iterator[Tile]:
    """Ten of them: two rows of five."""
    backlog = report.backlog
    missed = report.rpo_s is not None and report.lag_s is not None and report.lag_s > report.rpo_s
    yield Tile(
        field="lag_s", label="Lag", value=_plain(report.lag_s),
        text=("≤ " if away and report.lag_s is not None else "") + text.duration(report.lag_s),
        note="" if report.rpo_s is None else f"target {text.duration(report.rpo_s)}", tone="bad" if missed else "",
    )  # fmt: skip
    day, _, clock = text.moment(report.last_synced).partition(" ")
    yield Tile(
        field="last_synced", label="Mark", value=_plain(report.last_synced), note=day if report.last_synced else "",
        text=clock if report.last_synced else "none yet",
    )  # fmt: skip
    yield Tile(
        field="rate_bytes_s", label="Rate", value=_plain(report.rate_bytes_s),
        text=f"{text.size(report.rate_bytes_s)}/s", note=f"{report.rate_files_s:,.0f} files/s",
    )  # fmt: skip
    yield Tile(field="eta_s", label="ETA", value=_plain(report.eta_s), text=text.duration(report.eta_s))
    yield _checkpoint_tile(report)
    yield Tile(
        field="backlog.bytes", label="Backlog", value=_plain(backlog.bytes), text=text.size(backlog.bytes)
    )
    yield Tile(
        field="backlog.files", label="Files", value=_plain(backlog.files), text=text.number(backlog.files)
    )
    entries = "–" if backlog.entries is None else text.number(backlog.entries)
    yield Tile(field="backlog.entries", label="Names", value=_plain(backlog.entries), text=entries)
    age = backlog.age_s if backlog.bytes or backlog.files or backlog.entries else None
    yield Tile(field="backlog.age_s", label="Oldest", value=_plain(backlog.age_s), text=text.duration(age))
    yield Tile(
        field="failures", label="Failures", value=_plain(report.failures), text=text.number(report.failures),
        note="they hold the mark" if report.failures else "", tone="bad" if report.failures else "",
    )  # fmt: skip


def _checkpoint_tile(report: SessionReport) -> Tile:
    asked = report.checkpoint
    if asked is None:
        return Tile(field="checkpoint.completed", label="Checkpoint", value="", text="none")
    reached = asked.completed
    return Tile(
        field="checkpoint.completed", label="Checkpoint", value="true" if reached else "false",
        text="reached" if reached else "waiting", note=text.moment(asked.time), tone="good" if reached else "",
    )  # fmt: skip


def _facts(report: SessionReport) -> Iterator[tuple[str, str]]:
    yield "Primary", f"{report.primary_node}:{report.primary_brick}" if report.primary_brick else "–"
    yield "Secondary", shown(report.secondary) or "–"
    yield "Crawl", report.crawl_status
    yield "Changes are noticed by", report.detector or "–"
    yield "Meant to be", "in the foreground (seamark run)" if report.foreground else report.desired or "–"
    yield "Process", "–" if report.pid is None else str(report.pid)


def _failure(failure: failures.Failure) -> FailureRow:
    return FailureRow(
        path=shown(failure.path or failure.gfid or "?"), step=failure.step, error=shown(failure.error),
        tries=failure.tries, first=_moment(failure.first_ns / 1e9), last=_moment(failure.last_ns / 1e9),
    )  # fmt: skip


def _checkpoint(checkpoint: checkpoints.Checkpoint) -> CheckpointRow:
    reached = checkpoint.reached_ns
    return CheckpointRow(
        asked=_moment(checkpoint.asked_ns / 1e9), time=_moment(checkpoint.time_ns / 1e9),
        reached="" if reached is None else _moment(reached / 1e9),
    )  # fmt: skip


def _moment(at: float | None) -> str:
    return "" if at is None else text.moment(at)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.17g}"
