"""Saying what is refused: a line for each, but no more of them than a person can read.

Whoever can write to the broker decides how many messages there are to refuse; a log must not grow by all of them.
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger("seamark.refused")
_LINES, _IN_S = 10, 60.0  # so many lines a minute and process; the others are counted
_SHOWN = 300
_began = float("-inf")
_said = _unsaid = 0


def shown(what: object) -> str:
    """Anything of a message, short and in one line."""
    text = str(what)[: _SHOWN + 1].encode("unicode_escape").decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def refuse(why: str) -> str:
    """Note that a message is refused; what its task says for it."""
    global _began, _said, _unsaid
    now = time.monotonic()
    if now - _began >= _IN_S:
        if _unsaid:
            log.warning("%d more messages were refused in the last minute", _unsaid)
        _began, _said, _unsaid = now, 0, 0
    if _said < _LINES:
        _said += 1
        log.warning("a message is refused: %s", why)
    else:
        _unsaid += 1
    return f"refused: {why}"
