"""Children that end with their parent, also when that is killed with -9."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = ctypes.CDLL(None).prctl  # looked up here: nothing is safe to load between fork and exec


def die_with(parent: int, number: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """What the child does before exec: ask to be ended with its parent, by this signal.

    The kernel means the parent's *thread*: start the child from one that lives as long as the process.
    """

    def before_exec() -> None:
        _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return before_exec
