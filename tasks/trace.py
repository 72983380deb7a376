"""Which unit of work a process is at: it stands beside every line that is logged meanwhile.

``photos/12/D:stream:E:40:0:1`` is the session, the batch and the unit, as Flower has them too; the unit says which
segment of the changelog it comes from (canvas.py). So what became of a file can be followed from its batch on. A process
of a worker's pool does one task at a time, and its threads work for that one.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s%(at)s: %(message)s"
CLOCK = "%Y-%m-%dT%H:%M:%S%z"
_work = ""
_make = logging.getLogRecordFactory()


@contextmanager
def at(work: str) -> Iterator[None]:
    """What this process is at from now on."""
    global _work
    before, _work = _work, work
    try:
        yield
    finally:
        _work = before


def _record(*words: Any, **names: Any) -> logging.LogRecord:
    record = _make(*words, **names)
    record.work = _work
    return record


def mark_records() -> None:
    """Have each record of this process say what was being done: ``record.work``, empty for nothing in particular."""
    logging.setLogRecordFactory(_record)


def work_of(record: logging.LogRecord) -> str:
    return str(getattr(record, "work", ""))


class Formatter(logging.Formatter):
    """``FORMAT``, for files."""

    def __init__(self) -> None:
        super().__init__(FORMAT, CLOCK)

    def format(self, record: logging.LogRecord) -> str:
        work = work_of(record)
        record.at = f" [{work}]" if work else ""
        return super().format(record)
