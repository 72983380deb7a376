"""Quantities as people write them: durations, sizes, and a rate that changes with the time of the week.

Each is a type of its own, made from text by ``parse`` and back by ``str``; settings and options use the same.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Self

_NUMBER = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def _number(text: str | float, units: dict[str, int], advice: str) -> float:
    found = _NUMBER.fullmatch(str(text).strip())
    unit = found[2].lower().removesuffix("ib") if found else ""
    if found is None or isinstance(text, bool) or unit not in units:
        raise ValueError(f"{text!r} will not do: {advice}")
    return float(found[1]) * units[unit]


class Duration(float):
    """Seconds: "90", "30m", "2h", "1.5d"."""

    @classmethod
    def parse(cls, text: str | float) -> Self:
        """Raises ValueError, with what would be right."""
        return cls(_number(text, _SECONDS, "give seconds, or a number with s, m, h, d or w"))

    def __str__(self) -> str:
        for unit in ("d", "h", "m"):
            if self and self % _SECONDS[unit] == 0:
                return f"{int(self // _SECONDS[unit])}{unit}"
        return f"{float(self):g}"


class Size(int):
    """Bytes: "4096", "8M", "1.5 GiB"; units are powers of 1024."""

    @classmethod
    def parse(cls, text: str | float) -> Self:
        """Raises ValueError, with what would be right."""
        return cls(int(_number(text, _BYTES, "give bytes, or a number with K, M, G or T")))

    def __str__(self) -> str:
        for unit in ("P", "T", "G", "M", "K"):
            if self and self % _BYTES[unit.lower()] == 0:
                return f"{self // _BYTES[unit.lower()]}{unit}"
        return repr(int(self))


class DeleteLimit:
    """How much may be deleted: "1000" names, or "10%" of all; "off": no limit, and falsy.

    ``count`` or ``percent`` is None; without a limit both are.
    """

    __slots__ = ("count", "percent")

    def __init__(self, count: int | None = None, percent: float | None = None) -> None:
        self.count = count
        self.percent = percent

    @classmethod
    def parse(cls, text: str | float) -> Self:
        """Raises ValueError, with what would be right."""
        words = str(text).strip()
        if words.lower() == "off":
            return cls()
        found = _LIMIT.fullmatch(words)
        if found is None or isinstance(text, bool) or (found[2] and float(found[1]) > 100):
            raise ValueError(f'{text!r} will not do: give a number of names, a percentage ("10%"), or "off"')
        if found[2]:
            return cls(percent=float(found[1]))
        if "." in found[1]:
            raise ValueError(f"{text!r} will not do: names come whole")
        return cls(int(found[1]))

    def __bool__(self) -> bool:
        return self.count is not None or self.percent is not None

    def __str__(self) -> str:
        if self.percent is not None:
            return f"{self.percent:g}%"
        return "off" if self.count is None else str(self.count)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeleteLimit) and (self.count, self.percent) == (other.count, other.percent)

    def __hash__(self) -> int:
        return hash((self.count, self.percent))


_LIMIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(%?)")
NO_DELETE_LIMIT = DeleteLimit()
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_SLOT = re.compile(r"(?:([A-Za-z]{3})-)?([0-9]{1,2}):([0-9]{2}),([^,\s]+)")
_HOW = 'give a rate ("10M"; a plain number is KiB/s), or a timetable ("08:00,1M 19:00,off", "Mon-08:00,512K Sat-00:00,off")'


class Timetable:
    """Bytes a second, by the time of the week: ``--bwlimit`` of rclone, whose plain numbers are KiB/s as rsync's.

    ``slots``: (minute of the week, counted from Monday 00:00, from which on the rate holds; bytes a second, None for
    no limit), in order. The last slot of the week holds until the first one of the next.
    """

    __slots__ = ("slots", "text")

    def __init__(self, text: str, slots: tuple[tuple[int, int | None], ...]) -> None:
        self.text = text
        self.slots = slots

    @classmethod
    def parse(cls, text: str | float) -> Self:
        """Raises ValueError, with what would be right."""
        words = str(text).split()
        if not words or isinstance(text, bool):
            raise ValueError(f"{text!r} will not do: {_HOW}")
        if len(words) == 1 and "," not in words[0]:
            return cls(words[0], ((0, _rate(words[0])),))
        slots: dict[int, int | None] = {}
        for word in words:
            found = _SLOT.fullmatch(word)
            if found is None or int(found[2]) > 23 or int(found[3]) > 59:
                raise ValueError(f"{word!r} will not do: {_HOW}")
            minute, rate = int(found[2]) * 60 + int(found[3]), _rate(found[4])
            for day in _days(found[1]):
                slots[day * _DAY_MINUTES + minute] = rate
        return cls(" ".join(words), tuple(sorted(slots.items())))

    def rate_at(self, when: datetime) -> int | None:
        """Bytes a second at ``when``, by the clock on the wall that it shows; None: no limit."""
        minute = when.weekday() * _DAY_MINUTES + when.hour * 60 + when.minute
        before = [rate for start, rate in self.slots if start <= minute]
        return before[-1] if before else self.slots[-1][1]

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timetable) and self.slots == other.slots

    def __hash__(self) -> int:
        return hash(self.slots)


def _days(name: str | None) -> range:
    if name is None:
        return range(7)
    try:
        day = _DAYS.index(name.lower())
    except ValueError:
        raise ValueError(f"{name!r} is no day: give one of {', '.join(d.title() for d in _DAYS)}") from None
    return range(day, day + 1)


def _rate(word: str) -> int | None:
    if word.lower() in ("off", "0"):
        return None
    plain = re.fullmatch(r"[0-9.]+", word) is not None
    rate = int(_number(f"{word}K" if plain else word, _BYTES, _HOW))
    if not rate:
        raise ValueError(f"{word!r} will not do: a rate is above zero; 'off' means no limit")
    return rate


NO_LIMIT = Timetable("off", ((0, None),))
