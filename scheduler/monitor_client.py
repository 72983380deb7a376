"""Talking to the monitor of this node: for commands, which load nothing that they do not need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replication.changelog.control import exchange

SOCKET = "monitor.sock"


def monitor_dir(state_dir: str) -> Path:
    """Where the monitor of a state directory keeps its own things."""
    return Path(state_dir) / "monitor"


def ask_monitor(state_dir: str, op: str, **args: Any) -> dict[str, Any] | None:
    """Ask the running monitor: look, status, hurry. None when none is running."""
    try:
        return exchange(monitor_dir(state_dir), SOCKET, {"op": op, **args}, 10.0)
    except (OSError, ValueError):
        return None
