"""A command of a person's that checks a view: under way, its output, its end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from typing import Any, Dict

_TAIL = 64 << 10
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_libc = ctypes.CDLL(None)


def _end_with_us() -> None:
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


class Check:
    """A shell command in a process group of its own, which ends with us, and after ``timeout_s`` in any case."""

    def __init__(self, command: str, path: bytes, environment: Dict[str, str], timeout_s: float) -> None:
        ours = {
            name: value for name, value in os.environ.items() if not name.startswith(("SEAMARK_", "SQLITE_"))
        }
        self._began = time.monotonic()
        self._took = 0.0
        self._late = False
        self._said = bytearray()
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", command], cwd=path, env={**ours, **environment}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, umask=0o022,
            preexec_fn=_end_with_us,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name="check", daemon=True)
        self._reader.start()
        self._alarm = threading.Timer(timeout_s, self._too_late)
        self._alarm.daemon = True
        self._alarm.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while True:
            part = os.read(self._process.stdout.fileno(), _TAIL)
            if not part:
                return
            self._said += part
            del self._said[:-_TAIL]

    def _too_late(self) -> None:
        if self._process.poll() is None:
            self._late = True
            self._kill()

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def state(self, wait_s: float) -> Dict[str, Any]:
        """``running``; and once it is not, ``code`` (below 0: ended by that signal), ``late``, ``output`` (the end of it)."""
        try:
            code = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return {"running": True, "seconds": round(time.monotonic() - self._began, 3)}
        if not self._took:
            self._took = time.monotonic() - self._began
            self.end()
        return {
            "running": False, "seconds": round(self._took, 3), "code": code, "late": self._late,
            "output": bytes(self._said).decode("utf-8", "replace"),
        }  # fmt: skip

    def end(self) -> None:
        """Nothing of its process group is left."""
        self._alarm.cancel()
        self._kill()
        self._process.wait()
        self._reader.join(1.0)  # who left the group may hold its output open
