"""What one check found."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from replication.errors import ExitCode, SeamarkError


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"  # does not prevent replication
    FAIL = "fail"


class Outcome(NamedTuple):
    """One check. ``says``: what was found, or what is wrong and what to do. ``fatal``: --force does not help."""

    name: str
    level: Level
    says: str
    code: ExitCode = ExitCode.OK
    fatal: bool = False

    @property
    def ok(self) -> bool:
        return self.level is not Level.FAIL


def good(name: str, says: str) -> Outcome:
    return Outcome(name, Level.OK, says)


def warn(name: str, says: str) -> Outcome:
    return Outcome(name, Level.WARN, says)


def fail(name: str, says: str | SeamarkError, *, fatal: bool = False) -> Outcome:
    """A check that failed; an error brings its own exit code."""
    if isinstance(says, SeamarkError):
        return Outcome(name, Level.FAIL, says.message, says.exit_code, fatal)
    return Outcome(name, Level.FAIL, says, ExitCode.ERROR, fatal)


def size_text(number: int) -> str:
    """A number of bytes for people: 3 significant digits are enough here."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
