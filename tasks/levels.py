"""How much each role of a session logs: as its settings say, also when they change while it runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tasks import alive

if TYPE_CHECKING:
    from replication.setting_tables import LogSettings

_OURS = ("seamark", "replication", "scheduler", "tasks")
# The secondary agent says itself what is worth a line (secondary/server.py).
logging.getLogger("seamark.secondary").setLevel(logging.DEBUG)


def use(levels: LogSettings) -> None:
    """Have this process log as much as its role is to. A process without a role stays as it is."""
    level = {
        alive.CONTROL: levels.control, alive.DATA: levels.data, alive.BEAT: levels.beat, alive.AGENT: levels.agent,
    }.get(alive.role())  # fmt: skip
    if level is not None:
        for name in _OURS:
            logging.getLogger(name).setLevel(level.upper())
