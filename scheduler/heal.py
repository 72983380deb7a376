"""Processes that are stuck are killed, so that the supervisor starts them again.

Stuck is who owes a sign of life and has not run at all for as long: a process that is stopped, or waits
for what never comes. One that works for long, or waits for its secondary, runs now and then, and is let be.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from scheduler.procfs import Stillness, parent, stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from replication.session import SessionDir
    from scheduler.signs import Sign
    from scheduler.supervisor import Supervisor

log = logging.getLogger("seamark.heal")
STUCK_S = 60.0
_STILL_S = 30.0
_LEFT_S = 30.0  # more than a service is given to end


class Healer:
    """Heals the services of one session."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._stopped: dict[int, float] = {}

    def heal(self, signs: list[Sign]) -> None:
        """Kill what is stuck by now. Never blocks."""
        for sign in signs:
            if sign.pid and sign.silent_s > STUCK_S and sign.still_s > _STILL_S:
                log.warning(
                    "%s (process %d) has given no sign of life for %.0f s and does not run: killed, to be started again",
                    sign.role, sign.pid, sign.silent_s,
                )  # fmt: skip
                self._supervisor.kill(sign.pid)
            else:
                self._heal_pool(sign)

    def _heal_pool(self, sign: Sign) -> None:
        """Processes of a worker's pool that a signal stopped: the worker itself starts others."""
        now = time.monotonic()
        pool = [pid for pid in sign.stopped if pid != sign.pid]
        for pid in pool:
            if now - self._stopped.setdefault(pid, now) > STUCK_S and stopped(pid):
                log.warning("process %d of %s has been stopped for a minute: killed", pid, sign.role)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pid in [pid for pid in self._stopped if pid not in pool and not stopped(pid)]:
            del self._stopped[pid]


def kill_session(supervisor: Supervisor, pid: int, pids: Path) -> None:
    """Kill the process of a session, and at once what it started: that would hold its lock until it has ended.

    ``pids`` is its file of process ids.
    """
    below: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        below = json.loads(pids.read_bytes())
    ours = [service for service in below.values() if parent(service) == pid]
    for each in [pid, *ours]:
        supervisor.kill(each)


class LeftBehind:
    """What a killed process of a session has left behind, and does not end: it would hold the session's lock for ever.

    It was told to end when its parent did, and was given some time.
    """

    def __init__(self, place: SessionDir) -> None:
        self._place = place
        self._since: dict[int, float] = {}

    def look(self, supervisor: Supervisor) -> None:
        """Kill what has been left behind for too long. Never blocks."""
        now = time.monotonic()
        found = left_behind(self._place.path / "pids.json", self._place.run_lock)
        self._since = {pid: self._since.get(pid, now) for pid in found}
        for pid, since in self._since.items():
            if now - since > _LEFT_S:
                log.warning("%s: process %d outlived the session's own: killed", self._place.name, pid)
                supervisor.kill(pid)


def left_behind(pids: Path, lock: Path) -> list[int]:
    """Of the services in a file of process ids, those that hold the lock while their parent, whoever that is, does not."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(pids.read_bytes()).values()
        return [pid for pid in known if _has_open(pid, lock) and not _has_open(parent(pid), lock)]
    return []


def _has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        name = os.fspath(path.resolve())
        return any(os.readlink(entry.path) == name for entry in os.scandir(f"/proc/{pid}/fd"))
    return False


class ProcessWatch:
    """One process that is asked now and then whether it answers, and killed when it is stuck."""

    def __init__(self, what: str, answers: Callable[[], bool], every_s: float = 5.0) -> None:
        self._what = what
        self._answers = answers
        self._every_s = every_s
        self._due = 0.0
        self._silent_since: float | None = None
        self._stillness = Stillness()

    def look(self, pid: int | None) -> None:
        """Ask, if it is time, and kill it if it is stuck: whoever started it starts it again."""
        now = time.monotonic()
        if pid is None or now < self._due:
            return
        self._due = now + self._every_s
        if self._answers():
            self._silent_since = None
            return
        self._silent_since = self._silent_since or now
        still = self._stillness.look([pid], now).get(pid, 0.0)
        if now - self._silent_since > STUCK_S and still > _STILL_S:
            log.warning(
                "%s (process %d) does not answer and does not run: killed, to be started again",
                self._what,
                pid,
            )
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._silent_since = None
