"""Progress for scripts: one JSON object a line. The format is documented in docs/scripting.md."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from threading import Lock
from typing import Any, TextIO

from scheduler.snapshot import ProgressSnapshot
from seamark.progress.display import Display

INTERVAL = 1.0  # seconds between two status messages while only numbers change


class JsonProgress(Display):
    """NDJSON: ``message_type`` is status, log, error or summary."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._due = 0.0
        self._shown: tuple[object, ...] = ()
        self._lock = Lock()  # log comes from any thread, and lines must stay whole

    def update(self, snapshot: ProgressSnapshot) -> None:
        super().update(snapshot)
        now = time.monotonic()
        key = (snapshot.phase, snapshot.crawl, snapshot.failures, snapshot.state)
        if key == self._shown and now < self._due:
            return
        self._shown, self._due = key, now + INTERVAL
        self._emit("status", _fields(snapshot))

    def log(self, line: str, level: str, source: str, created: float, work: str = "") -> None:
        at = {"work": work} if work else {}
        self._emit("log", {"level": level.lower(), "logger": source, **at, "message": line}, created)

    def error(self, message: str, exit_code: int) -> None:
        self._emit("error", {"message": message, "exit_code": int(exit_code)})

    def summary(self, exit_code: int) -> None:
        seconds = round(time.monotonic() - self.started, 3)
        self._emit("summary", {"exit_code": int(exit_code), "seconds": seconds} | _fields(self.last))

    def _emit(self, message_type: str, fields: dict[str, Any], at: float | None = None) -> None:
        head = {"message_type": message_type, "time": round(time.time() if at is None else at, 3)}
        with self._lock:
            # ASCII only: names that are not UTF-8 arrive as lone surrogates, and must not break the line
            self._write(json.dumps(head | fields, ensure_ascii=True))


def _fields(snapshot: ProgressSnapshot) -> dict[str, Any]:
    fields = asdict(snapshot)
    for name in ("rate_bytes_s", "files_s", "eta_s", "lag_s"):
        if fields[name] is not None:
            fields[name] = round(fields[name], 3)
    fraction = snapshot.fraction()
    if fraction is not None and not snapshot.finished:
        fraction = min(fraction, 0.9999)  # 1 means finished
    return fields | {"fraction": None if fraction is None else int(fraction * 10000) / 10000}
