"""Reports of sessions as people read them: a block for one, a line for each of several; 80 columns."""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING

from scheduler.reports import REPORT_S
from seamark.progress import text
from seamark.progress.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.brick_rows import BrickReport
    from scheduler.reports import SessionReport

WIDTH = 80
_LABEL = 27


def heading() -> str:
    """What stands above lines."""
    return f"{'SESSION':<18} {'STATUS':<12} {'HEALTHY':<7} {'LAG':>9} {'BACKLOG':>10} {'LAST_SYNCED':<19}"


def line(report: SessionReport) -> Iterator[str]:
    """One session in a line, and in another why it is not healthy."""
    name = shown(report.name)
    name = name if len(name) <= 18 else f"{name[:17]}…"
    yield (
        f"{name:<18} {report.status:<12} {healthy(report):<7} {text.duration(report.lag_s):>9} "
        f"{text.size(report.backlog.bytes):>10} {text.moment(report.last_synced):<19}"
    ).rstrip()
    if report.reason:
        yield from wrapped(report.reason, "  ", "  ")
    elif report.status == "Recording":
        yield from wrapped(waiting(report), "  ", "  ")


def block(report: SessionReport, *, detail: bool) -> Iterator[str]:
    """One session in full."""
    yield f"session {shown(report.name)}"
    for label, value in _rows(report, detail=detail):
        yield from wrapped(value, f"  {label:<{_LABEL}}", " " * (_LABEL + 2))
    yield from _bricks(report.bricks)


def _bricks(bricks: tuple[BrickReport, ...]) -> Iterator[str]:
    """A table of them: in two lines each, where it would be wider than the rest."""
    if not bricks:
        return
    rows = [
        ("PRIMARY NODE", "PRIMARY BRICK", "STATUS", "CRAWL STATUS", "LAST_SYNCED"),
        *(
            (
                shown(each.node),
                shown(each.brick),
                each.status,
                each.crawl_status,
                text.moment(each.last_synced),
            )
            for each in bricks
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    wide = sum(widths) + 2 * 5 > WIDTH
    for row, brick in zip(rows, [None, *bricks], strict=True):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        if wide:
            yield from wrapped(f"{row[0]}  {row[1]}", "  ", "    ")
            yield f"      {'  '.join(cells[2:])}".rstrip()
        else:
            yield f"  {'  '.join(cells)}".rstrip()
        if brick is not None and brick.reason:
            heard = f", last heard {text.duration(brick.age_s)} ago" if brick.age_s is not None else ""
            yield from wrapped(f"{brick.reason}{heard}", "      ", "      ")


def wrapped(value: str, first: str, later: str) -> list[str]:
    """Text in lines of at most 80 columns; long words, as paths are, are broken."""
    return textwrap.wrap(
        shown(value), WIDTH, initial_indent=first, subsequent_indent=later, drop_whitespace=True,
        break_on_hyphens=False,
    ) or [first.rstrip()]  # fmt: skip


def healthy(report: SessionReport) -> str:
    return {True: "Yes", False: "No", None: "-"}[report.healthy]


def backlog(report: SessionReport) -> str:
    """What is to be done, in words."""
    pending = report.backlog
    names = "names not known yet" if pending.entries is None else f"{text.number(pending.entries)} names"
    age = f", the oldest {text.duration(pending.age_s)} old" if pending.age_s else ""
    return f"{names}, {text.number(pending.files)} files, {text.size(pending.bytes)}{age}"


def waiting(report: SessionReport) -> str:
    """What the way back of a promoted root waits for, and what is to be done then."""
    return f"its old primary, {report.secondary}; when that is back: seamark failback {report.name}"


def _recorded(report: SessionReport) -> Iterator[tuple[str, str]]:
    found = report.recorded
    if found is None:
        return
    yield (
        "RECORDED",
        "nothing yet"
        if found.since is None
        else text.recorded(found.names, found.since, at_least=found.at_least),
    )
    yield "WAITS FOR", waiting(report)


def _rows(report: SessionReport, *, detail: bool) -> Iterator[tuple[str, str]]:
    away = report.age_s is not None and report.age_s > REPORT_S and report.healthy is not None
    yield "PRIMARY NODE", report.primary_node or "-"
    yield "PRIMARY VOL", report.primary_volume or "-"
    yield "PRIMARY BRICK", report.primary_brick or "-"
    yield "SECONDARY USER", report.secondary_user or "-"
    yield "SECONDARY", report.secondary or "-"
    yield "SECONDARY NODE", report.secondary_node or "-"
    yield "STATUS", report.status
    yield from _recorded(report)
    yield "CRAWL STATUS", report.crawl_status
    yield "LAST_SYNCED", text.moment(report.last_synced)
    target = f" (target {text.duration(report.rpo_s)})" if report.rpo_s is not None else ""
    yield (
        "LAG",
        ("at most " if away and report.lag_s is not None else "") + text.duration(report.lag_s) + target,
    )
    yield "BACKLOG", backlog(report)
    yield "RATE", f"{text.size(report.rate_bytes_s)}/s, {report.rate_files_s:,.0f} files/s"
    yield "ETA", text.duration(report.eta_s)
    if detail:
        yield from _detail(report)
    if report.active_node and (detail or report.status == "Passive"):
        since = (
            "" if report.active_since is None else f", for {text.duration(time.time() - report.active_since)}"
        )
        yield "ACTIVE NODE", f"{report.active_node}{since}"
    yield "HEALTHY", healthy(report)
    if report.reasons and detail:
        for reason in report.reasons:
            yield "REASON", f"[{reason.code}] {reason.text}{_since(reason.since)}"
    elif report.reason:
        yield "REASON", report.reason
    if away:
        yield "AS OF", f"{text.duration(report.age_s)} ago: its process has said nothing since"


def _detail(report: SessionReport) -> Iterator[tuple[str, str]]:
    entries = report.backlog.entries
    names = "-" if entries is None else text.number(entries)
    yield "ENTRY", names
    yield "DATA", text.number(report.backlog.files)
    yield "META", names  # metadata goes with its names, in one look
    yield "FAILURES", text.number(report.failures)
    yield "SKIPPED", text.number(report.skipped)
    asked = report.checkpoint
    yield "CHECKPOINT TIME", "N/A" if asked is None else text.moment(asked.time)
    yield "CHECKPOINT COMPLETED", "N/A" if asked is None else "Yes" if asked.completed else "No"
    done = asked.completion_time if asked is not None else None
    yield "CHECKPOINT COMPLETION TIME", "N/A" if done is None else text.moment(done)
    yield "SNAPSHOT", _snapshot(report)
    yield "DRILL", _drill(report)
    yield from _proof(report)


def _snapshot(report: SessionReport) -> str:
    taken = report.snapshot
    if taken is None:
        return "N/A"
    mark = f"{taken.name}, up to {text.moment(taken.mark)}" if taken.name else "none yet"
    return f"{mark}; no newer one: {taken.error}" if taken.error else mark


def _drill(report: SessionReport) -> str:
    drill = report.drill
    if drill is None:
        return "N/A"
    came = "passed" if drill["passed"] else f"FAILED: {drill['reason']}"
    return f"{text.moment(drill['started'])}, {came}"


def _proof(report: SessionReport) -> Iterator[tuple[str, str]]:
    proof = report.proof
    if proof is None or not proof.proven:
        yield "PROVEN", "N/A"
    else:
        oldest = f", the oldest {text.duration(time.time() - proof.oldest)} ago" if proof.oldest else ""
        yield "PROVEN", f"{proof.proven} of {proof.slices} slices{oldest}"
    yield "DIFFERENCES", "N/A" if proof is None or not proof.proven else text.number(proof.differences)


def _since(since: float | None) -> str:
    if since is None or time.time() - since < 1:
        return ""
    return f" (since {text.moment(since)})"
