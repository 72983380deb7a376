"""When a session works, if not always: windows that begin by a cron expression and last for a while.

In a window the session works until it is consistent, that is until everything from before the window's
beginning is on the secondary, and then rests until the next one. Cron's times are those of the clock
on the operator's wall, daylight saving included: cronsim treats its gaps and repeats as Debian's cron does.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import tzlocal
from cronsim import CronSim, CronSimError


class Window(NamedTuple):
    """From ``start`` until ``end``, both with a time zone."""

    start: datetime
    end: datetime


def check_expression(text: str) -> None:
    """Whether cron would understand it. Raises ValueError."""
    try:
        next(CronSim(text, datetime(2024, 1, 1)))  # noqa: DTZ001
    except (CronSimError, StopIteration):
        raise ValueError(
            f"{text!r} will not do: give a cron expression of five fields, as '0 22 * * *' for every day at 22:00"
        ) from None


def zone(name: str) -> tzinfo:
    """A time zone by its name; the machine's own for an empty one. Raises ValueError."""
    if not name:
        return tzlocal.get_localzone()
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is no time zone here; give one as Europe/Berlin, or leave it out"
        ) from None


def window_at(now: datetime, expression: str, duration_s: float) -> Window | None:
    """The window in which ``now`` (with its time zone) lies; the latest, should they overlap."""
    length = timedelta(seconds=duration_s)
    found = None
    # Forwards: going back, the repeated hour in autumn would begin at another moment. In UTC, where an hour is one.
    for start in CronSim(expression, _plus(now, -length)):
        if start.astimezone(UTC) > now.astimezone(UTC):
            return found
        found = Window(start, _plus(start, length))
    return found


def next_window(now: datetime, expression: str, duration_s: float) -> Window:
    """The first window that begins after ``now``."""
    # In the repeated hour in autumn it begins with what was due the first time.
    start = next(each for each in CronSim(expression, now) if each.astimezone(UTC) > now.astimezone(UTC))
    return Window(start, _plus(start, timedelta(seconds=duration_s)))


def _plus(when: datetime, length: timedelta) -> datetime:
    return (when.astimezone(UTC) + length).astimezone(when.tzinfo)
