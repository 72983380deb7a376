"""The proof that is kept of a comparison by content: of a slice, or of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication import proofs
from replication.progress import Progress
from replication.proofs import Proof

if TYPE_CHECKING:
    from scheduler.verify.outcome import Outcome
    from scheduler.verify.verification import Asked


def keep(progress: Progress, asked: Asked, found: Outcome) -> None:
    """Note what was proved, if it was all of a slice, by content, to its end."""
    if not asked.content or not asked.slices or found.ended is None:
        return
    proof = Proof(
        asked.slice, asked.slices, int(found.started * 1e9), int(found.ended * 1e9), found.names, found.contents,
        found.bytes, found.different + sum(found.mended.values()), found.different, found.unreadable,
        found.unsettled, found.digest, found.hash,
    )  # fmt: skip
    progress.change(lambda db: proofs.keep(db, proof))
