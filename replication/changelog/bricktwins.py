"""Whether what a brick did not record, because it was killed between a change and its record, was recorded by a twin of it.

A twin that is followed says so only if it was there all the time: where a volume was stopped, or the whole pool lost its
power, all of them may have ended between the same change and its record. That a twin has ended shows late (see Bricks.lives).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from replication.changelog.brickmembers import Member

_TOGETHER_S = 600.0  # between restarts of which the second may have ended before the first was there again


class Twins:
    """``members``: all bricks; ``records``: whether one tells of all that happens to its set, as far as is known."""

    def __init__(self, members: Callable[[], Iterable[Member]], records: Callable[[Member], bool]) -> None:
        self._members, self._records = members, records
        self._restarted: dict[str, float] = {}  # when that was told
        self._waiting: dict[
            str, tuple[Member, float]
        ] = {}  # which nobody is known to have been a witness of yet

    def restarted(self, member: Member) -> bool:
        """``member`` was started again: False where something may be missing."""
        if member.brick.arbiter:
            return True  # nothing happens to it alone
        now = time.monotonic()
        self._restarted[str(member.brick)] = now
        if not self._witnesses(member, now):
            self._forget(member.number)
            return False
        self._waiting[str(member.brick)] = member, now
        return True

    def all_were_there(self) -> bool:
        """To be asked now and then: False where something may be missing after all."""
        now = time.monotonic()
        for name, (member, since) in list(self._waiting.items()):
            witnesses = self._witnesses(member, since)
            if not witnesses:
                self._forget(member.number)
                return False
            if any(each.quiet_s() < now - since for each in witnesses):
                del self._waiting[name]
        return True

    def _witnesses(self, member: Member, since: float) -> list[Member]:
        return [
            each
            for each in self._members()
            if each.number == member.number
            and str(each.brick) != str(member.brick)
            and self._restarted.get(str(each.brick), -math.inf) < since - _TOGETHER_S
            and self._records(each)
        ]

    def _forget(self, number: int) -> None:
        self._waiting = {name: each for name, each in self._waiting.items() if each[0].number != number}
