"""Whether what a brick did not record, because it was killed between a change and its record, was recorded by a twin of it.

A twin that is followed says so only if it was there all the time: where a volume was stopped, or the whole pool lost its
power, all of them may have ended between the same change and its record. That a twin has ended shows late (see Bricks.lives).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from replication.changelog.brickmembers import Member

_TOGETHER_S = 600.0  # between restarts of which the second may have ended before the first was there again


class Missing(NamedTuple):
    """Something that was done since then may not be recorded, by the bricks' clock; None: nobody knows since when."""

    since_ns: int | None

    def and_of(self, other: Missing) -> Missing:
        if self.since_ns is None or other.since_ns is None:
            return Missing(None)
        return Missing(min(self.since_ns, other.since_ns))


class Twins:
    """``members``: all bricks; ``records``: whether one tells of all that happens to its set, as far as is known."""

    def __init__(self, members: Callable[[], Iterable[Member]], records: Callable[[Member], bool]) -> None:
        self._members, self._records = members, records
        self._restarted: dict[str, float] = {}  # when that was told
        # Of which nobody is known to have been a witness yet, and when that was told.
        self._waiting: dict[str, tuple[Member, float, Missing]] = {}

    def restarted(self, member: Member, since_ns: int | None) -> Missing | None:
        """``member`` was started again, having ended after ``since_ns``: what may be missing; None: nothing is."""
        if member.brick.arbiter:
            return None  # nothing happens to it alone
        now = time.monotonic()
        self._restarted[str(member.brick)] = now
        doubt = self._missing(member, Missing(since_ns))
        self._waiting[str(member.brick)] = member, now, doubt
        return None if self._witnesses(member, now, doubt) else self._missed(member.number)

    def missing(self) -> Missing | None:
        """To be asked now and then: what may be missing after all; None: nothing is."""
        now = time.monotonic()
        for name, (member, since, doubt) in list(self._waiting.items()):
            witnesses = self._witnesses(member, since, doubt)
            if not witnesses:
                return self._missed(member.number)
            if any(each.quiet_s() < now - since for each in witnesses):
                del self._waiting[name]
        return None

    def in_doubt(self, name: str) -> bool:
        """Whether it is not known yet if a brick (HOST:PATH) had a witness."""
        return name in self._waiting

    def _missing(self, member: Member, missing: Missing) -> Missing:
        """The same, and what was in doubt of the member before."""
        known = self._waiting.get(str(member.brick))
        return missing if known is None else missing.and_of(known[2])

    def _missed(self, number: int) -> Missing:
        """All that is in doubt of a set, which is said herewith."""
        of_it = {name: each for name, each in self._waiting.items() if each[0].number == number}
        self._waiting = {name: each for name, each in self._waiting.items() if name not in of_it}
        return functools.reduce(Missing.and_of, (missing for _, _, missing in of_it.values()))

    def _witnesses(self, member: Member, told: float, doubt: Missing) -> list[Member]:
        """Those that record, and were there when it ended: that may be long before it was started again, and ``told`` of."""
        ended = (
            told
            if doubt.since_ns is None
            else min(told, time.monotonic() - (time.time_ns() - doubt.since_ns) / 1e9)
        )
        return [
            each
            for each in self._members()
            if each.number == member.number
            and str(each.brick) != str(member.brick)
            and self._restarted.get(str(each.brick), -math.inf) < ended - _TOGETHER_S
            and self._records(each)
        ]
