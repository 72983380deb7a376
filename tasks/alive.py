"""Signs of life of the roles of a session: each says now and then that it is there.

A role is what its own process says of itself: a worker by answering what beat sends to a queue that it
alone consumes, and while it is busy by each unit that it works on; beat by what it sends. Whoever
watches looks whether the sign changes, and trusts no clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.ledger import Ledger

CONTROL, DATA, BEAT, SECONDARY = "worker control", "worker data", "beat", "secondary"
AGENT = "agent"  # which gives no signs: its position moves on
_EVERY_S = 1.0

_role = ""
_next = 0.0


def become(role: str) -> None:
    """What this process, and those it forks, are from now on."""
    global _role
    _role = role


def role() -> str:
    """What this process is; empty: nothing in particular."""
    return _role


def show(ledger: Ledger) -> None:
    """A sign of life of the role of this process, at most once a second. A process without a role gives none."""
    global _next
    now = time.monotonic()
    if _role and now >= _next:
        _next = now + _EVERY_S
        ledger.sign(_role)
