"""The recorder: what the kernel, or a brick, reports becomes records of the open segment.

An event only says "look here again": events are merged while they wait, and their order is not kept.
So nothing is ever concluded from an event but which names, and which kinds, may have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

OWN = b".seamark"


class RecorderUnavailable(Exception):
    """Changes cannot be recorded here; a scan has to find them. The text says why."""


class Recorder(Protocol):
    """What the agent needs of a recorder."""

    mode: str
    fd: int
    events: int
    overflows: int

    @property
    def uneasy(self) -> bool:
        """Whether something may have happened that ``before_close`` alone would find."""

    def drain(self, full: Callable[[], bool]) -> bool:
        """Take in what the kernel has queued. False when stopped because ``full()``, with more to come."""

    def resume(self) -> bool:
        """Whether everything that changed since the last recorder ended is recorded too. Called once, before ``drain``."""

    def seen_until(self, now_ns: int) -> int:
        """Until when everything is taken in, after a ``drain`` that began at ``now_ns`` and came to its end."""

    def before_close(self, *, whole: bool) -> bool:
        """Add to the open segment what had to wait for the rest of it.

        False: not all that changed until the last ``drain`` is recorded yet; ``whole``: it is to be, if that is possible.
        """

    def explained(self, until_ns: int) -> None:
        """All that was there then is looked at by a first scan, or was by who replicated before."""

    def look_since(self, since_ns: int | None) -> None:
        """A scan looks for what changed since then unrecorded: record what it cannot see. None: since the last such scan."""

    def look(self, path: bytes, names: list[bytes], kinds: int) -> None:
        """Record these names in the directory at ``path`` as well. Raises OSError."""

    def applied(self, serial: int) -> None:
        """Everything recorded in segments up to this serial is on the secondary."""

    def next_segment(self, serial: int) -> None:
        """What is recorded from now on belongs to the segment with this serial."""

    def close(self) -> None: ...
