"""What every display can do."""

from __future__ import annotations

import os
import time
from typing import Self, TextIO

from scheduler.snapshot import ProgressSnapshot
from seamark.progress import text


def discard(stream: TextIO) -> None:
    """Nobody reads ``stream`` any more. That is no reason to stop replicating: what comes goes nowhere."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # it has no descriptor
        pass


class Display:
    """Shows snapshots and log lines. A context manager: leaving it puts the terminal right again.

    Used from the main thread, but for ``log``, which any thread may call.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.last = ProgressSnapshot()
        self.started = time.monotonic()

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Show ``snapshot``. May be called as often as one likes."""
        self.last = snapshot

    def log(self, line: str, level: str, source: str, created: float, work: str = "") -> None:
        """Show one message of the program. ``created``: seconds since the epoch; ``work``: what it was at (tasks/trace.py)."""
        self._write(text.log_line(line, level, created, work))

    def summary(self, exit_code: int) -> None:
        """The last word of a run that came to an end."""
        self._write(text.summary(self.last, exit_code, time.monotonic() - self.started))

    def error(self, message: str, exit_code: int) -> None:
        """A run failed with ``message``, which the command line prints on standard error anyway."""

    def _write(self, line: str) -> None:
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except OSError:
            discard(self.stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class NoProgress(Display):
    """Only log lines, of which --no-progress lets through warnings and errors."""

    def summary(self, exit_code: int) -> None:
        """Nothing: silence is what was asked for."""
