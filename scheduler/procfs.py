"""What the kernel knows of a process (proc(5)): whether it is there, stopped, or has run at all."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

STOPPED = "Tt"  # by a signal, or by a debugger


class Running(NamedTuple):
    """``state`` is the kernel's letter; ``switches`` grows whenever the process's first thread runs."""

    state: str
    switches: int


def running(pid: int) -> Running | None:
    """One look at a process; None when there is none, or it is waiting to be reaped."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, switches = "?", 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "State":
            state = value.split()[0]
        elif name.endswith("ctxt_switches"):
            switches += int(value)
    return None if state in "ZX" else Running(state, switches)


def children(pid: int) -> list[int]:
    """The processes that a process's first thread started and has not reaped."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(child) for child in text.split()]
    return []


def parent(pid: int) -> int:
    """The process that started it, or looks after it now; 0 when it is not there."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])


def born(pid: int) -> int:
    """When it was started, in clock ticks since boot: with the pid, who it is. 0 when it is not there."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    # The second field is the program's name in parentheses, which may hold anything.
    return int(text.rpartition(")")[2].split()[19])


def uptime() -> float:
    """Seconds since boot, those asleep included: no setting of the clock changes it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Stillness:
    """For how long processes did not run at all, as seen by looking again and again."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}

    def look(self, pids: list[int], now: float) -> dict[int, float]:
        """Seconds for each process; those that were not looked at before, or ran since, have 0."""
        found = {}
        for pid in pids:
            look = running(pid)
            if look is not None:
                switches, since = self._seen.get(pid, (-1, now))
                since = since if switches == look.switches else now
                found[pid] = (look.switches, since)
        self._seen = found
        return {pid: now - since for pid, (_, since) in found.items()}


def stopped(pid: int) -> bool:
    """Whether a signal stopped it (SIGSTOP, or a debugger)."""
    look = running(pid)
    return look is not None and look.state in STOPPED


def is_there(pid: int, since: int) -> bool:
    """Whether the process that had this pid and was ``born`` then is there still."""
    return pid > 0 and running(pid) is not None and born(pid) == since


def namespace() -> str:
    """In which numbers of processes mean anything: in a container, its own (pid_namespaces(7))."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def me() -> tuple[int, int]:
    """Who this process is: its pid, and when it was born."""
    return os.getpid(), born(os.getpid())
