"""What is told of the way back of a promoted root, while its old primary is waited for: how much was recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.failback.recorded import Count
from scheduler.health import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from replication.session import SessionDir, SessionState

_AGENT_S = 2.0
_counts: dict[Path, Count] = {}  # so that who asks again and again counts on


class RecordedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was changed on a promoted root: ``names``, or more (``at_least``), ``since`` when; None: nothing is recorded."""

    names: int
    since: float | None
    at_least: bool


def recorded(place: SessionDir, state: SessionState | None) -> RecordedReport | None:
    """None where nothing is waited for."""
    begun = state.recording if state is not None else None
    if begun is None or begun.used:
        _counts.pop(place.path, None)
        return None
    count = _counts.get(place.path)
    if count is None or count.begun != begun:
        count = _counts[place.path] = Count(place.changelog, begun)
    found = count.look()
    return RecordedReport(names=found.names, since=found.since, at_least=found.at_least)


def of_recorder(place: SessionDir) -> list[Reason]:
    """Why nothing is recorded at the moment, if that is so."""
    try:
        agent_call(place.changelog, "status", timeout=_AGENT_S)
    except AgentRefused:
        pass
    except AgentUnreachable:
        text = "nothing is recorded: the agent does not answer, or changes cannot be recorded here"
        return [Reason(code="agent", text=text)]
    return []
