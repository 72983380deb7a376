"""Where what a secondary holds comes from: the volumes above it, the first of all first, so that no volume feeds itself.

A volume that is a secondary itself passes on what stands in its own ``.seamark/owner``. A promoted one begins anew:
what it holds is its own by now.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Optional, Sequence

from replication.secondary import layout
from replication.secondary.handles import identity_of
from replication.secondary.protocol import AgentError


def lineage_of(root: bytes, volume: str) -> List[str]:
    """The volumes above the one whose root this is, and ``volume``, its own identity, last."""
    try:
        with open(os.path.join(root, layout.HIDDEN, layout.OWNER), "rb") as file:
            owner = json.loads(file.read())
    except (OSError, ValueError):
        return [volume]
    return [*_above(owner), volume]


def _above(owner: Any) -> List[str]:
    if not isinstance(owner, dict) or owner.get("promoted"):
        return []
    found = owner.get("lineage") or [owner.get("volume")]
    return [str(each) for each in found if each]


def refuse_loop(root_fd: int, lineage: Optional[Sequence[str]]) -> None:
    """What comes from this very volume is not to come back to it. Raises AgentError."""
    if not lineage:
        return
    try:
        here = identity_of(root_fd).hex()
    except (OSError, AttributeError):  # a C library without the calls
        return
    if here in lineage:
        raise AgentError(
            "loop",
            "the primary is a copy of this very volume: changes would go round and round"
            if here != lineage[-1]
            else "this is the primary itself",
        )


def kept_lineage(owner: Optional[Dict[str, Any]], request: Dict[str, Any]) -> Optional[List[str]]:
    """What the owner's file is to say from now on: who only sends content knows nothing of it."""
    found = request.get("lineage") or (owner or {}).get("lineage")
    return [str(each) for each in found] if found else None
