"""A connection to another node of the pool, by the system's ssh: frames both ways, never waited for.

Whoever uses it watches ``fd``, and calls ``open`` and ``read`` when that is readable, and now and then. A node that does not answer is
given up within seconds, and tried again and again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import deque
from typing import Any

from replication.bricknode.wire import READY, Frames
from replication.dying import die_with
from replication.secondary.protocol import AgentError, frame

CONNECT_S = 20.0
ANSWER_S = 10.0
_AGAIN_S = (1.0, 2.0, 5.0, 10.0)  # between attempts
_READ = 1 << 20
_NOISE = 256 << 10  # bytes that a login shell may say before
_UNSENT = 16 << 20
_SAID = 2000  # bytes of standard error that are kept


class NodeLink:
    """``command``: what starts the program there. ``up``: it is there. ``why``: else, why not, in a line. Not for several threads."""

    def __init__(self, host: str, command: list[str]) -> None:
        self.host = host
        self.up = False
        self.why = "not reached yet"
        self.heard = 0.0  # seconds since the epoch
        self.fd = -1
        self.opened = 0  # how often it was
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = Frames()
        self._noise = b""
        self._unsent = b""
        self._said = b""
        self._failed = 0
        self._next_at = 0.0
        self._due: deque[float] = deque()  # time.monotonic() until which each question is to be answered

    def open(self) -> None:
        """Begin to connect, if it is time."""
        if self._process is not None or time.monotonic() < self._next_at:
            return
        self._frames, self._noise, self._unsent, self._said = Frames(), b"", b"", b""
        self._due = deque([time.monotonic() + CONNECT_S])
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True, preexec_fn=die_with(os.getpid()),
            )  # fmt: skip
        except OSError as error:
            self._give_up(f"ssh cannot be started: {error.strerror}")
            return
        process = self._process
        assert process.stdout is not None
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
        self.fd = process.stdout.fileno()
        self.opened += 1

    def ask(self, patience_s: float = ANSWER_S, **request: Any) -> None:
        """Send a question that is to be answered: one after the other."""
        self._due.append(time.monotonic() + patience_s)
        self.say(**request)

    def answered(self) -> None:
        """The oldest question is."""
        if self._due:
            self._due.popleft()
        if self._due:
            self._due[0] = max(self._due[0], time.monotonic() + ANSWER_S)

    def say(self, **request: Any) -> None:
        self._unsent += frame(request)
        self._flush()

    def read(self) -> None:
        """Take in what has come. The link may break meanwhile: then ``fd`` is closed."""
        if self._process is None:
            return
        try:
            while data := os.read(self.fd, _READ):
                self.heard = time.time()
                if self._due:  # it is at work: there may be much to tell before the answer
                    self._due[0] = max(self._due[0], time.monotonic() + ANSWER_S)
                self._came(data)
                if len(data) < _READ:
                    break
            else:
                self._give_up("")
                return
        except BlockingIOError:
            pass
        except (OSError, AgentError) as error:
            self._give_up(f"it does not speak as it should: {error}")
            return
        self._flush()
        if self._due and time.monotonic() > self._due[0]:
            self._give_up("it does not answer")

    def next(self) -> tuple[dict[str, Any], bytes] | None:
        """The next frame, if there is a whole one. Raises AgentError."""
        return self._frames.next() if self.up else None

    def _came(self, data: bytes) -> None:
        if self.up:
            self._frames.add(data)
            return
        self._noise += data
        before, ready, rest = self._noise.partition(READY)
        if ready and (not before or before.endswith(b"\n")):
            self.up, self.why, self._noise, self._failed = True, "", b"", 0
            self._due.clear()
            self._frames.add(rest)
        elif len(self._noise) > _NOISE:
            raise AgentError("protocol", "something else than Seamark's program answers")

    def _flush(self) -> None:
        if self._process is None or not self._unsent:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            written = os.write(self._process.stdin.fileno(), self._unsent)
            self._unsent = self._unsent[written:]
        if len(self._unsent) > _UNSENT:
            self._give_up("it takes nothing")

    def drop(self, why: str) -> None:
        """End the connection; it is made anew after a while."""
        self._give_up(why)

    def _give_up(self, why: str) -> None:
        process, self._process = self._process, None
        if process is not None:
            said = self._last_words(process)
            why = why if not said else f"{why}: {said}" if why else said
            process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            process.wait()
        self.up, self.fd = False, -1
        self.why = why or "the connection was lost"
        self._next_at = time.monotonic() + _AGAIN_S[min(self._failed, len(_AGAIN_S) - 1)]
        self._failed += 1

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            while part := os.read(process.stderr.fileno(), 8192):
                self._said = (self._said + part)[-_SAID:]
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines() if line.strip()]
        return "".join(c if c.isprintable() else "?" for c in lines[-1])[:300] if lines else ""

    def close(self) -> None:
        """End it for good."""
        self._give_up("closed")
