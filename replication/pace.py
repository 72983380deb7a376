"""How often the whole tree is compared, from what comparing it takes."""

from __future__ import annotations

# Without a recorder, comparing is how changes are found: a tenth of the time may go into it.
_SCAN = (10, 2, 3600)
# With one, it finds what no recorder sees (a store through mmap, a clock as coarse as a tick).
_MISSED = (200, 600, 86_400)

# A rename is visible a moment before its event is queued: what vanished so shortly before a position
# may have a new name beyond it.
LIMBO_MARGIN_NS = 500_000_000


def scan_interval(took_s: float, *, recording: bool) -> float:
    """Seconds until the tree is compared again, when comparing it took ``took_s`` seconds."""
    factor, least, most = _MISSED if recording else _SCAN
    return min(max(took_s * factor, least), most)
