"""Primary, secondary and state directory must not lie inside of one another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from replication.errors import UsageError

if TYPE_CHECKING:
    from replication.remote.target import Target


def check_nesting(primary: bytes, secondary: Target, state_dir: str) -> None:
    """Refuse primary, secondary and state directory inside of one another. Raises UsageError.

    Only the state directory may contain the others: what changes in it is nobody's data.
    """
    here = os.fsdecode(os.path.realpath(primary))
    state = os.path.realpath(state_dir)
    pairs = [(here, state, "the state directory is inside of the primary", "choose another --state-dir")]
    if not secondary.is_remote:
        there = os.fsdecode(os.path.realpath(secondary.path))
        if here == there:
            raise UsageError("primary and secondary are the same directory")
        apart = "choose directories that do not contain each other"
        pairs += [
            (here, there, "the secondary is inside of the primary", apart),
            (there, here, "the primary is inside of the secondary", apart),
            (there, state, "the state directory is inside of the secondary", "choose another --state-dir"),
        ]
    for outer, inner, words, advice in pairs:
        if f"{inner}/".startswith(outer.rstrip("/") + "/"):
            raise UsageError(f"{words} ({inner} in {outer}): {advice}")
