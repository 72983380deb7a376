"""Log records of all processes of a run, brought together in the one that shows them."""

from __future__ import annotations

import json
import logging
import os
import select

from tasks.trace import work_of

_LINE = 3900  # PIPE_BUF is 4096: writes up to that are not torn apart (pipe(7))


class _PipeHandler(logging.Handler):
    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)[-2500:]
            rest = [record.name, record.levelno, record.created, record.process, work_of(record)]
            line = json.dumps([text[:3000], *rest])
            if len(line) > _LINE:
                line = json.dumps([text[:600], *rest])
            os.write(self._fd, line.encode() + b"\n")
        except OSError:
            pass  # full, or nobody reads any more: a log line is not worth stopping for


class LogPipe:
    """Made before forking; children write, the parent reads."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._rest = b""

    def use_in_child(self) -> None:
        """Send this process's logging to the parent."""
        root = logging.getLogger()
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        root.addHandler(_PipeHandler(self._write))
        root.setLevel(logging.INFO)

    def wait(self, seconds: float) -> None:
        """Until something is there to read, at most so long; an interrupt ends it."""
        select.select([self._read], [], [], seconds)

    def relay(self) -> None:
        """Hand what the children logged to this process's own handlers."""
        while True:
            try:
                part = os.read(self._read, 1 << 16)
            except BlockingIOError:
                return
            if not part:
                return
            *lines, self._rest = (self._rest + part).split(b"\n")
            for line in lines:
                self._emit(line)

    @staticmethod
    def _emit(line: bytes) -> None:
        try:
            text, name, level, created, process, work = json.loads(line)
        except ValueError:
            return
        record = logging.LogRecord(name, level, "", 0, text, None, None)
        record.created, record.process, record.work = created, process, work
        logging.getLogger(name).handle(record)
