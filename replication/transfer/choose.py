"""Which file goes by which engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from replication.transfer.item import How

Engine = Literal["stream", "rsync", "tar"]

# Below this, sending the whole file costs less than starting an rsync and exchanging checksums.
RSYNC_MIN_BYTES = 8 << 20


def choose(how: How, size: int, method: str, rsync_from: int = RSYNC_MIN_BYTES) -> Engine:
    """The engine for one file. ``method``: auto, or the engine that the session insists on. Sizes in bytes.

    By itself, auto takes rsync only where it can win: a large file of which another version is there. (And
    before rsync is started, a delta by blocks is tried: tasks/data.py.)
    """
    if method == "auto":
        return "rsync" if how != "new" and size >= rsync_from else "stream"
    if method in {"stream", "rsync", "tar"}:
        return method  # type: ignore[return-value]
    raise ValueError(f"sync_method {method!r}: use auto, rsync, tar or stream")
