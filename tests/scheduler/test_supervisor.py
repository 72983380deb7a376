"""Services end when they are told to, however soon after their start that is."""

from __future__ import annotations

import os
import signal
import time

import pytest

from scheduler.logpipe import LogPipe
from scheduler.supervisor import Service, Supervisor


def forever() -> int:
    while True:
        time.sleep(60)


@pytest.mark.timeout(100)
@pytest.mark.parametrize("idle", [False, True])
def test_stopped_at_once_nothing_is_left(tmp_path, idle):
    """What is sent before the child has let go of our handlers must not be lost. Its first signal is all it takes."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # ours, which a child has until it is one
    supervisor = Supervisor(LogPipe(), str(tmp_path / "output"), str(tmp_path / "pids"))
    try:
        for _ in range(60):
            service = Service("x", forever, stop_signals=((signal.SIGTERM, 1000.0),), droppable=idle)
            supervisor.add(service)
            pid = service.pid
            supervisor.stop(lambda: True, idle=idle)
            supervisor.services.clear()
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        signal.signal(signal.SIGTERM, before)
