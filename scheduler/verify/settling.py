"""Has everything that changed until some moment arrived on the secondary? By the changelog's position, or by a scan."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from replication import unsettled
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.progress import Progress
from replication.session import Desired

if TYPE_CHECKING:
    from replication.session import SessionDir

_MARGIN_NS = 10**9
_RECORDED_S, _SCANNED_S = 60.0, 600.0


class Settling:
    """Asks the session's agent where the changelog stands, and its progress how far that is applied."""

    def __init__(self, place: SessionDir, *, running: bool) -> None:
        self._place = place
        self._progress = Progress(place.progress)
        self._running = running

    @property
    def epoch(self) -> int:
        return self._progress.brick().epoch

    def token(self) -> str:
        """The present moment, as what everything until now has to come before."""
        if self._running and self._place.detector() != "scan":
            try:
                return f"p{agent_call(self._place.changelog, 'barrier', timeout=5.0)['position']}"
            except (AgentRefused, AgentUnreachable):
                pass
        return f"t{time.time_ns()}"

    def passed(self, token: str) -> bool:
        """Whether everything until then is on the secondary, but for what failed."""
        brick = self._progress.brick()
        front = brick.front if token[0] == "p" else brick.front_ns
        return brick.complete and front >= int(token[1:]) and not self._progress.look(unsettled.holds)

    def arrived_ns(self) -> int:
        """What did not change since this time is on the secondary, or never will be; 0: that is not known."""
        brick = self._progress.brick()
        rows = self._progress.look(unsettled.rows)
        known_ns = min([brick.front_ns, *(row.since_ns - 1 for row in rows)])
        return max(0, known_ns - _MARGIN_NS) if brick.complete else 0

    def patience(self) -> float:
        """Seconds after which nobody waits any more for a token to be passed."""
        state = self._place.state()
        if not self._running or (state is not None and state.desired is Desired.PAUSED):
            return 0.0
        return _SCANNED_S if self._place.detector() == "scan" else _RECORDED_S

    def close(self) -> None:
        self._progress.close()
