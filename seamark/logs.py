"""Where log messages go: to the display (a person, or a script), and in full to a file.

Tracebacks are only ever written to the file: on a terminal one clear line is worth more.
"""

from __future__ import annotations

import logging
import os
from hashlib import blake2b
from logging.handlers import RotatingFileHandler

from replication.errors import SeamarkError
from scheduler.options import RunOptions
from seamark.progress import Display

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
            self.display.log(one_line(record), record.levelname, record.name, record.created)
        except Exception:
            self.handleError(record)


def one_line(record: logging.LogRecord) -> str:
    """The message, and of a traceback (of this process, or sent as text by another) only the reason."""
    message, _, trace = record.getMessage().partition("\nTraceback (most recent call last):")
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


def setup_logging(options: RunOptions, display: Display) -> None:
    """Send all logging of this process to ``display`` and, unless it is a dry run, to a file.

    Raises SeamarkError when the file cannot be written.
    """
    global _path
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    silent = options.progress is False and not options.log_json
    handler = DisplayHandler(display, logging.WARNING if silent else logging.INFO)
    handler.addFilter(_for_people)
    root.addHandler(handler)
    _path = None
    if not options.dry_run:
        _path = _file_of(options)
        root.addHandler(_file_handler(_path))


def _file_of(options: RunOptions) -> str:
    """Each session has a file of its own: two processes must not turn over the same one."""
    if options.name is not None:
        name = options.name
    else:
        pair = options.primary + b"\0" + os.fsencode(options.secondary)
        name = "run-" + blake2b(pair, digest_size=6).hexdigest()
    return os.path.join(options.state_dir, "logs", name + ".log")


def _file_handler(path: str) -> logging.Handler:
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        handler = RotatingFileHandler(
            path, maxBytes=FILE_BYTES, backupCount=FILE_COUNT, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        where = os.path.dirname(path)
        raise SeamarkError(
            f"cannot write logs in {where}: {error.strerror}; choose another --state-dir"
        ) from None
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z"
        )
    )
    return handler
