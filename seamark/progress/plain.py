"""Progress where there is no terminal: a line at each change of phase, and now and then between."""

from __future__ import annotations

import time
from typing import TextIO

from scheduler.snapshot import Phase, ProgressSnapshot
from seamark.progress import text
from seamark.progress.display import Display


class PlainProgress(Display):
    """Lines, at most one in ``interval`` seconds unless the phase or the crawl changes; none while idle."""

    def __init__(self, stream: TextIO, interval: float) -> None:
        super().__init__(stream)
        self.interval = interval
        self._due = 0.0
        self._shown: tuple[object, ...] = ()

    def update(self, snapshot: ProgressSnapshot) -> None:
        super().update(snapshot)
        now = time.monotonic()
        key = (snapshot.phase, snapshot.crawl)
        if key == self._shown and (now < self._due or snapshot.phase is Phase.IDLE):
            return
        self._shown, self._due = key, now + self.interval
        self._write(text.log_line(text.status_line(snapshot), "INFO", time.time()))
