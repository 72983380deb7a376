"""The proof that is kept of a comparison of a whole slice, or of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replication.session import SessionDir
    from scheduler.verify.outcome import Outcome
    from scheduler.verify.verification import Asked


def keep(place: SessionDir, asked: Asked, found: Outcome) -> None:
    """Note what was proved, if it was a whole slice by content."""
