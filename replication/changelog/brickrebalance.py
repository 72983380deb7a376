"""Whether files of a volume were moved between its bricks: what a rebalance itself does is in no changelog.

It shows nobody another tree. But what clients do to a file while it is moved may be taken back by it (attributes that they
set, names that they gave it). So when one has ended, everything that it may have touched is looked at again.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import msgspec

from replication.session_file import replace_file

_RUNS = {"1", "5"}  # it moves files, or mends layouts; source: gf_defrag_status_t
_NONE = "00000000-0000-0000-0000-000000000000"


class _Known(msgspec.Struct, frozen=True):
    """The last one, whether it was under way, and a time before it began; where it was not, one before the next begins."""

    id: str
    runs: bool
    since_ns: int


class RebalanceWatch:
    """``directory``: where glusterd notes what becomes of the volume; ``kept``: what was taken care of, durable."""

    def __init__(self, directory: str, kept: Path) -> None:
        self._state = os.path.join(directory, "node_state.info")
        self._kept = kept
        self._known = _Known(_NONE, False, 0)
        self._looked_ns = 0
        self._told: tuple[_Known, int] | None = None  # and when that was seen
        try:
            self._known = msgspec.json.decode(kept.read_bytes(), type=_Known)
        except (OSError, msgspec.DecodeError):
            self._keep(self._at(time.time_ns()))

    def ended_since(self) -> int | None:
        """A time before the beginning of one that has ended since the last call of ``note``; None: none has."""
        at_ns, known = time.time_ns(), self._known
        now = self._at(self._looked_ns or known.since_ns)
        if (now.id, now.runs) == (known.id, known.runs):
            self._looked_ns = at_ns
            return None
        # (One that is noted no more went with the brick that it emptied; so did another, that nobody saw in between.)
        if known.runs or not now.runs:
            since_ns = known.since_ns if known.runs else now.since_ns
            self._told = msgspec.structs.replace(now, since_ns=since_ns if now.runs else at_ns), at_ns
            return since_ns
        self._keep(now)
        self._looked_ns = at_ns
        return None

    def note(self) -> None:
        """What was told last is taken care of; what came after that is not."""
        if self._told is not None:
            known, self._looked_ns = self._told
            self._told = None
            self._keep(known)

    def close(self) -> None:
        """The next one to be missed begins after this."""
        if self._looked_ns and not self._known.runs:
            with contextlib.suppress(OSError):
                self._keep(msgspec.structs.replace(self._known, since_ns=self._looked_ns))

    def _at(self, since_ns: int) -> _Known:
        try:
            with open(self._state, encoding="utf-8") as file:
                found = dict(line.rstrip("\n").partition("=")[::2] for line in file)
        except OSError:
            found = {}
        return _Known(found.get("rebalance-id", _NONE), found.get("status") in _RUNS, since_ns)

    def _keep(self, known: _Known) -> None:
        replace_file(self._kept, msgspec.json.encode(known).decode())
        self._known = known
