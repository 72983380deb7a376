"""Progress on a terminal: a block that stays in place, log lines scrolling above it."""

from __future__ import annotations

import os
import time
from threading import RLock
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scheduler.snapshot import Phase, ProgressSnapshot
from seamark.progress import text
from seamark.progress.display import Display, discard

MIN_INTERVAL = 0.1  # seconds between two drawings while only numbers change
_STYLES = {Phase.FINISHED: "green", Phase.FAILED: "bold red", Phase.STOPPING: "yellow"}
_LEVELS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}


def can_show(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal on which lines can be drawn over."""
    try:
        return stream.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown", ""}
    except ValueError:  # closed
        return False


class TerminalProgress(Display):
    """Draws only when called: no thread of its own, so that the supervisor may fork."""

    def __init__(self, stream: TextIO, title: str) -> None:
        super().__init__(stream)
        self.title = title
        self.console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._lock = RLock()
        self._due = 0.0
        self._phase: Phase | None = None

    def update(self, snapshot: ProgressSnapshot) -> None:
        super().update(snapshot)
        now = time.monotonic()
        if snapshot.phase is self._phase and now < self._due:
            return
        self._phase, self._due = snapshot.phase, now + MIN_INTERVAL
        self._draw()

    def _draw(self) -> None:
        with self._lock:
            try:
                if not self._live.is_started:
                    self._live.start()
                self._live.update(block(self.title, self.last), refresh=True)
            except OSError:  # the terminal is gone
                discard(self.stream)

    def log(self, line: str, level: str, source: str, created: float, work: str = "") -> None:
        with self._lock:
            try:
                self.console.print(
                    Text(text.log_line(line, level, created, work), style=_LEVELS.get(level, ""))
                )
            except OSError:
                discard(self.stream)

    def summary(self, exit_code: int) -> None:
        self._stop()
        super().summary(exit_code)

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        """Leave the last block standing."""
        if not self._live.is_started:
            return
        self._draw()  # the last snapshot may have come too soon after the one before it
        try:
            self._live.stop()  # shows the cursor again
        except OSError:
            discard(self.stream)


def block(title: str, snapshot: ProgressSnapshot) -> Group:
    """The block: five lines, none longer than the terminal is wide."""
    work = (
        f"scanned {text.number(snapshot.scanned)}   entries {text.number(snapshot.entries_done)}   "
        f"files {text.number(snapshot.files_done)} of {text.number(snapshot.files_total)}   "
        f"{text.size(snapshot.bytes_done)} of {text.size(snapshot.bytes_total)}"
    )
    speed = (
        f"{text.size(snapshot.rate_bytes_s)}/s   {snapshot.files_s:,.0f} files/s   "
        f"ETA {text.duration(snapshot.eta_s)}"
    )
    health = Text(f"lag {text.duration(snapshot.lag_s)}   mark {text.moment(snapshot.stime)}   ")
    health.append(f"failures {text.number(snapshot.failures)}", style="bold red" if snapshot.failures else "")
    lines = [Text(title, style="bold"), _headline(snapshot), Text(work), health]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(lines[0], lines[1], lines[2], _bar(snapshot, speed), lines[3])


def _headline(snapshot: ProgressSnapshot) -> Text:
    line = Text(text.CRAWLS[snapshot.crawl])
    line.append(f" · {snapshot.phase}", style=_STYLES.get(snapshot.phase, "cyan"))
    if snapshot.state:
        line.append(f" · {snapshot.state}")
    return line


def _bar(snapshot: ProgressSnapshot, speed: str) -> Table | Text:
    fraction = snapshot.fraction()
    if fraction is None:
        return Text(speed, no_wrap=True, overflow="ellipsis")
    shown = min(fraction, 1.0 if snapshot.finished else 0.995)
    row = Table.grid(padding=(0, 1))
    row.add_column(width=30)
    row.add_column(width=6, justify="right", no_wrap=True)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(ProgressBar(total=1.0, completed=shown, width=30), text.percent(snapshot), speed)
    return row
