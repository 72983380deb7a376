"""Progress where there is no terminal: a line when something new begins, and now and then between."""

from __future__ import annotations

import time
from typing import TextIO

from scheduler.snapshot import Crawl, Phase, ProgressSnapshot
from seamark.progress import text
from seamark.progress.display import Display


class PlainProgress(Display):
    """Lines, at most one in ``interval`` seconds but for the first of each phase and crawl; none while idle.

    A live session goes back and forth between running and idle all day: that alone is no news.
    """

    def __init__(self, stream: TextIO, interval: float) -> None:
        super().__init__(stream)
        self.interval = interval
        self._due = 0.0
        self._shown: tuple[Phase, Crawl] | None = None
        self._seen: set[tuple[Phase, Crawl]] = set()

    def update(self, snapshot: ProgressSnapshot) -> None:
        super().update(snapshot)
        now = time.monotonic()
        key = (snapshot.phase, snapshot.crawl)
        still_idle = key == self._shown and snapshot.phase is Phase.IDLE
        if key in self._seen and (now < self._due or still_idle):
            return
        self._seen.add(key)
        self._shown, self._due = key, now + self.interval
        self._write(text.log_line(text.status_line(snapshot), "INFO", time.time()))
