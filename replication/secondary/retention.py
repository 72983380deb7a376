"""How long snapshots are kept: rules as "24h hourly, 7d daily", and what of a series they keep.

A rule divides time into hours, days, weeks or (as 30 days) months, and keeps the *first* snapshot of each for as long as
it says: so whoever makes more of them later pushes none out.
"""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, Optional, Tuple

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SLOTS = {"all": 0, "hourly": 3600, "daily": 86400, "weekly": 7 * 86400, "monthly": 30 * 86400}
_RULE = re.compile(r"([0-9]{1,6})\s*([mhdw])\s+([a-z]+)")
_LONGEST_S = 100 * 366 * 86400
_HOW = (
    'give rules as "24h hourly, 7d daily": how long (m, h, d, w), and all, hourly, daily, weekly or monthly'
)


class Retention:
    """Rules of how long snapshots are kept. ``rules``: (seconds, length of a slot in seconds, 0: every one)."""

    __slots__ = ("rules", "text")

    def __init__(self, text: str, rules: Tuple[Tuple[int, int], ...]) -> None:
        self.text = text
        self.rules = rules

    @classmethod
    def parse(cls, text: object) -> Retention:
        """Raises ValueError, with what would be right."""
        words = [" ".join(part.lower().split()) for part in str(text).split(",")]
        rules = []
        for word in words:
            found = _RULE.fullmatch(word)
            if found is None or found[3] not in _SLOTS:
                raise ValueError("{!r} will not do: {}".format(word or str(text), _HOW))
            length = int(found[1]) * _SECONDS[found[2]]
            if not 0 < length <= _LONGEST_S:
                raise ValueError("{!r} will not do: from a minute to a hundred years".format(word))
            rules.append((length, _SLOTS[found[3]]))
        return cls(", ".join(words), tuple(rules))

    def until(self, taken: Iterable[int]) -> Dict[int, Optional[int]]:
        """Until when each of a series of snapshots is kept (ns): the time after which no rule keeps it any more; None for
        one that no rule ever kept, as an earlier one stands for its slot.
        """
        series = sorted(set(taken))
        kept: Dict[int, Optional[int]] = dict.fromkeys(series)
        for length, slot in self.rules:
            for at in _firsts(series, slot * 10**9):
                kept[at] = max(kept[at] or 0, at + length * 10**9)
        return kept

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retention) and self.rules == other.rules

    def __hash__(self) -> int:
        return hash(self.rules)


def _firsts(series: List[int], slot_ns: int) -> List[int]:
    """The first of each slot."""
    if not slot_ns:
        return series
    found: Dict[int, int] = {}
    for at in series:
        found.setdefault(at // slot_ns, at)
    return list(found.values())


DEFAULT = Retention.parse("24h hourly, 7d daily")
