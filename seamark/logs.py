"""Where log messages go: to the display (a person, or a script), and in full to a file.

Tracebacks are only ever written to the file: on a terminal one clear line is worth more.
"""

from __future__ import annotations

import logging
import os
from hashlib import blake2b
from logging.handlers import RotatingFileHandler

from replication.errors import SeamarkError
from replication.private import private_dir
from scheduler.options import RunOptions
from seamark.progress import Display
from tasks.trace import Formatter, work_of

FILE_BYTES = 5 * 1024 * 1024
FILE_COUNT = 5  # old files that are kept
# Chatty libraries whose errors reach us as exceptions, and are told in our own words.
_QUIET = ("paramiko", "celery", "kombu", "amqp", "asyncio", "tornado", "flower")

_path: str | None = None


def log_path() -> str | None:
    """The file that this process writes its log to, if any."""
    return _path


class DisplayHandler(logging.Handler):
    """Hands each record to the display as one line, without a traceback."""

    def __init__(self, display: Display, level: int) -> None:
        super().__init__(level)
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = one_line(record)
            self.display.log(line, record.levelname, record.name, record.created, work_of(record))
        except Exception:
            self.handleError(record)


def one_line(record: logging.LogRecord) -> str:
    """The message, and of a traceback (of this process, or sent as text by another) only the reason."""
    words: str | None = getattr(record, "words", None)  # for people, of a message for programs
    message, _, trace = (words or record.getMessage()).partition("\nTraceback (most recent call last):")
    reason = trace.strip().rsplit("\n", 1)[-1]
    if record.exc_info and record.exc_info[1] is not None:
        reason = _reason(record.exc_info[1])
    line = f"{message} ({reason})" if reason else message
    return " ".join(part.strip() for part in line.splitlines())


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _for_people(record: logging.LogRecord) -> bool:
    """Libraries are only heard when it is serious."""
    return record.levelno >= logging.CRITICAL or record.name.split(".", 1)[0] not in _QUIET


def setup_logging(display: Display, path: str | None, *, silent: bool = False) -> None:
    """Send all logging of this process to ``display`` (``silent``: warnings only), and to the file ``path``.

    Raises SeamarkError when the file cannot be written.
    """
    global _path
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    handler = DisplayHandler(display, logging.WARNING if silent else logging.INFO)
    handler.addFilter(_for_people)
    root.addHandler(handler)
    _path = path
    if path is not None:
        root.addHandler(_file_handler(path))


def log_to_file(path: str) -> None:
    """Have this process, a child of the monitor, keep a log of its own as well. Raises SeamarkError."""
    logging.getLogger().addHandler(_file_handler(path))


def session_log(state_dir: str, name: str) -> str:
    """Where the log of a named session is. Each has its own: two processes must not turn over the same one."""
    return os.path.join(state_dir, "logs", name + ".log")


def run_log(options: RunOptions) -> str:
    """Where the log of a run is."""
    if options.name is not None:
        return session_log(options.state_dir, options.name)
    pair = options.primary + b"\0" + os.fsencode(options.secondary)
    return session_log(options.state_dir, "run-" + blake2b(pair, digest_size=6).hexdigest())


def _file_handler(path: str) -> logging.Handler:
    try:
        private_dir(os.path.dirname(path))
        handler = RotatingFileHandler(
            path, maxBytes=FILE_BYTES, backupCount=FILE_COUNT, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        where = os.path.dirname(path)
        raise SeamarkError(
            f"cannot write logs in {where}: {error.strerror}; choose another --state-dir"
        ) from None
    handler.setFormatter(Formatter())
    return handler
