"""`seamark status --watch`: the sessions of this host, live, on the whole terminal."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from replication.errors import UsageError
from scheduler.reports import Status, session_report, session_reports
from seamark.blocks import backlog, healthy
from seamark.progress import text
from seamark.progress.terminal import can_show
from seamark.progress.text import shown

if TYPE_CHECKING:
    from scheduler.reports import SessionReport

_EVERY_S = 1.0
_KEPT = 300
_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {
    Status.ACTIVE: "green", Status.PASSIVE: "green", Status.FAULTY: "bold red", Status.PAUSED: "yellow",
    Status.INITIALIZING: "cyan", Status.RECORDING: "yellow",
}  # fmt: skip


def watch(state_dir: str, name: str | None) -> int:
    """Show what ``session_reports`` says each second, until Ctrl-C. Raises NotFoundError, UsageError."""
    if not can_show(sys.stdout):
        raise UsageError("--watch needs a terminal; in scripts: seamark status --json")
    console = Console(highlight=False, markup=False, emoji=False)
    rates: dict[str, deque[float]] = {}
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            reports = session_reports(state_dir) if name is None else [session_report(state_dir, name)]
            for report in reports:
                rates.setdefault(report.name, deque(maxlen=_KEPT)).append(report.rate_bytes_s)
            live.update(screen(reports, rates, console.width, console.height), refresh=True)
            time.sleep(_EVERY_S)


def screen(reports: list[SessionReport], rates: dict[str, deque[float]], width: int, height: int) -> Group:
    """All sessions; the ones that are not healthy first when there is no room for all."""
    room = max(1, (height - 2) // _LINES)
    first = sorted(reports, key=lambda report: report.healthy is not False)
    kept = {report.name for report in first[:room]}
    parts: list[Panel | Text] = [_title(reports)]
    parts += [_panel(report, rates[report.name], width - 4) for report in reports if report.name in kept]
    if len(reports) > room:
        parts.append(Text(f"and {len(reports) - room} more: seamark status", style="dim"))
    return Group(*parts)


_LINES = 7  # of a panel, its frame included


def _title(reports: list[SessionReport]) -> Text:
    bad = sum(report.healthy is False for report in reports)
    title = Text(f"{len(reports)} session{'s' * (len(reports) != 1)}, ", no_wrap=True, overflow="ellipsis")
    title.append(f"{bad} not healthy" if bad else "none unhealthy", style="bold red" if bad else "green")
    title.append(time.strftime("   %Y-%m-%d %H:%M:%S   Ctrl-C ends"), style="dim")
    return title


def _panel(report: SessionReport, rates: deque[float], width: int) -> Panel:
    head = Text(f"{report.status}", style=_STYLES.get(report.status, "dim"))
    head.append(f"   {report.crawl_status}   → {shown(report.secondary)}", style="default")
    numbers = (
        f"healthy {healthy(report)}   lag {text.duration(report.lag_s)}   ETA {text.duration(report.eta_s)}   "
        f"failures {text.number(report.failures)}   mark {text.moment(report.last_synced)}"
    )
    rate = f"{text.size(report.rate_bytes_s)}/s "
    lines = [
        head,
        Text(numbers),
        Text(f"backlog {backlog(report)}"),
        Text(rate + sparkline(list(rates), width - len(rate)), style="cyan"),
        _problem(report),
    ]
    for each in lines:
        each.no_wrap, each.overflow = True, "ellipsis"
    style = "red" if report.healthy is False else "default"
    return Panel(
        Group(*lines), title=Text(shown(report.name), style="bold"), title_align="left", border_style=style
    )


def _problem(report: SessionReport) -> Text:
    if not report.reason:
        return Text("Problem: none", style="dim")
    more = f" (and {len(report.reasons) - 1} more)" if len(report.reasons) > 1 else ""
    return Text(f"Problem: {shown(report.reason)}{more}", style="bold red")


def sparkline(values: list[float], width: int) -> str:
    """The last ``width`` values as bars of eight heights; the highest is full."""
    values = values[-max(width, 0) :]
    top = max(values, default=0.0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(7, int(8 * value / top))] for value in values)
