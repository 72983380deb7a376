"""Which file goes by which engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from replication.transfer.item import How

Engine = Literal["stream", "rsync", "tar"]

# Below this, sending the whole file costs less than starting an rsync and exchanging checksums.
RSYNC_MIN_BYTES = 8 << 20
# A link of less than this is slower than the compressor (zlib level 1, zstd level 1).
_THIN_BYTES_PER_S = 60 << 20
_FAR_S = 0.02


class LinkFacts(NamedTuple):
    """What is known of the way to the secondary; None where it has not been measured."""

    rtt_s: float | None = None
    bytes_per_s: float | None = None

    @property
    def is_thin(self) -> bool:
        """Whether compression pays. A long way is taken for a thin one until its rate is known."""
        if self.bytes_per_s is not None:
            return self.bytes_per_s < _THIN_BYTES_PER_S
        return self.rtt_s is not None and self.rtt_s > _FAR_S


def choose(how: How, size: int, nlink: int, method: str, rsync_there: bool = True) -> Engine:
    """The engine for one file. ``method``: auto, or the engine that the session insists on. Size in bytes.

    By itself, auto takes rsync only where it can win: a large file of which another version is there. (And
    before rsync is started, a delta by blocks is tried: tasks/data.py.)
    ``nlink`` decides nothing yet: every engine writes through to all links.
    """
    del nlink
    if method == "auto":
        return "rsync" if how != "new" and size >= RSYNC_MIN_BYTES and rsync_there else "stream"
    if method in {"stream", "rsync", "tar"}:
        return method  # type: ignore[return-value]
    raise ValueError(f"sync_method {method!r}: use auto, rsync, tar or stream")
