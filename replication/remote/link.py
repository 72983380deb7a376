"""A link: two byte streams to a secondary agent, whatever carries them, that notice a dead far side.

A socket (the agent is a child process) and an ssh channel are the same to us: recv, send and a
time-out. A far side that is asked and says nothing for ``answer_timeout_s`` is taken for dead; the
pool's pings see to it that it is asked.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from replication.remote.errors import LinkLost, reason_of
from replication.secondary.protocol import LOG_LINE

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("seamark.secondary")
_LOG_LINE = LOG_LINE.encode()
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "error": logging.ERROR}
_READ_BUFFER = 1 << 20
_STDERR_KEPT = 8192
# How often a blocked read or write looks at the clock.
_SLICES = 8


class Carrier(Protocol):
    """What a socket and a paramiko channel have in common."""

    def recv(self, nbytes: int, /) -> bytes: ...
    def send(self, data: Any, /) -> int: ...
    def settimeout(self, seconds: float, /) -> None: ...


class Patience:
    """Since when the far side owes us an answer."""

    def __init__(self, answer_timeout_s: float, what: str) -> None:
        self.timeout_s = answer_timeout_s
        self.what = what
        self.last_heard = time.monotonic()
        self._asked: float | None = None
        self._lock = threading.Lock()  # one thread writes, another reads
        self.lost: str | None = None

    def give_up(self, reason: str) -> LinkLost:
        """The link is dead, for the first reason that was given; the error that says so."""
        self.lost = self.lost or reason
        return LinkLost(self.lost)

    def heard(self) -> None:
        with self._lock:
            self.last_heard = time.monotonic()
            self._asked = None

    def asked(self) -> None:
        with self._lock:
            if self._asked is None:
                self._asked = time.monotonic()

    @property
    def owed_s(self) -> float:
        """For how long an answer has been due; 0 while none is."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def moved(self) -> None:
        """It took something from us: a large request over a slow link is no silence.

        Its answer may be here before we come to say so: then nothing is owed.
        """
        with self._lock:
            if self._asked is not None:
                self._asked = time.monotonic()

    def check(self) -> None:
        """Raises LinkLost when it has owed us one for too long."""
        if self.owed_s > self.timeout_s:
            raise self.give_up(f"{self.what} has not answered for {self.timeout_s:g} s")


class _Reader(io.RawIOBase):
    def __init__(self, carrier: Carrier, patience: Patience, last_words: Callable[[str], str]) -> None:
        self._carrier = carrier
        self._patience = patience
        self._last_words = last_words

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while True:
            try:
                data = self._carrier.recv(len(buffer))
            except TimeoutError:
                self._patience.check()
                continue
            except (OSError, EOFError) as error:
                raise self._patience.give_up(self._last_words(reason_of(error))) from None
            if not data:
                raise self._patience.give_up(self._last_words(""))
            self._patience.heard()
            buffer[: len(data)] = data
            return len(data)


class _Writer(io.RawIOBase):
    def __init__(self, carrier: Carrier, patience: Patience) -> None:
        self._carrier = carrier
        self._patience = patience

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """All of it, unlike other raw files: whoever writes a frame wants it to leave whole."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            self._patience.asked()
            try:
                sent = self._carrier.send(view[done : done + (1 << 18)])
            except TimeoutError:
                self._patience.check()
                continue
            except (OSError, EOFError) as error:
                raise self._patience.give_up(f"{self._patience.what}: {reason_of(error)}") from None
            if not sent:
                raise self._patience.give_up(f"{self._patience.what} closed the connection")
            done += sent
            self._patience.moved()
        return done


class Link:
    """Streams to one running agent. ``reader`` is buffered; ``writer`` is not, and writes all it is given."""

    def __init__(
        self, carrier: Carrier, what: str, answer_timeout_s: float, end: Callable[[bool], None]
    ) -> None:
        carrier.settimeout(max(0.05, answer_timeout_s / _SLICES))
        self.pid = os.getpid()
        self.what = what
        self.patience = Patience(answer_timeout_s, what)
        self.reader = io.BufferedReader(_Reader(carrier, self.patience, self._why_it_ended), _READ_BUFFER)
        self.writer: io.RawIOBase = _Writer(carrier, self.patience)
        self._stderr = bytearray()
        self._stderr_done = threading.Event()
        self._end = end
        self._closing = threading.Lock()

    @property
    def lost(self) -> str | None:
        """Why this link is dead, or None while it is not known to be."""
        return self.patience.lost

    @property
    def idle_s(self) -> float:
        """For how long nothing has been heard."""
        return time.monotonic() - self.patience.last_heard

    def _why_it_ended(self, reason: str) -> str:
        """By its own last words, if it had any; else as the system says it."""
        if said := self.stderr_tail(wait_s=2):
            return f"{self.what} ended: {last_lines(said)}"
        return f"{self.what}: {reason}" if reason else f"{self.what} ended"

    def collect_stderr(self, read: Callable[[], bytes]) -> None:
        """Keep the end of what ``read`` gives, in a thread, until it gives nothing."""

        def run() -> None:
            with contextlib.suppress(Exception):
                rest = b""
                while part := read():
                    *lines, rest = (rest + part).split(b"\n")
                    self._keep(b"".join(line + b"\n" for line in lines if not _logged(line)))
                    if len(rest) > _STDERR_KEPT:
                        self._keep(rest)
                        rest = b""
                self._keep(rest)
            self._stderr_done.set()

        threading.Thread(target=run, name="secondary-stderr", daemon=True).start()

    def _keep(self, said: bytes) -> None:
        self._stderr += said
        del self._stderr[:-_STDERR_KEPT]

    def stderr_tail(self, wait_s: float = 0.0) -> str:
        """The last that the far side wrote to its standard error; waits so long for its end."""
        self._stderr_done.wait(wait_s)
        return self._stderr.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End the agent and what carried it. May be called twice, from any thread. Never raises."""
        if self._closing.acquire(blocking=False):
            self.patience.give_up(f"the link to {self.what} was closed")
            self._finish(abandon=os.getpid() != self.pid)

    def abandon(self) -> None:
        """In a forked child: close our copies of the descriptors, and leave the parent's link alone."""
        self._finish(abandon=True)

    def _finish(self, *, abandon: bool) -> None:
        with contextlib.suppress(Exception):
            self._end(abandon)


def _logged(line: bytes) -> bool:
    """Whether this is a line for the log, which it then is in."""
    if not line.startswith(_LOG_LINE):
        return False
    level, _, text = line[len(_LOG_LINE) :].decode("utf-8", "replace").partition(" ")
    printable = "".join(c if c.isprintable() else "?" for c in text[:2000])
    log.log(_LEVELS.get(level, logging.WARNING), "%s", printable)
    return True


def last_lines(text: str, limit: int = 500) -> str:
    """The end of a program's words as one line, without control characters."""
    printable = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", text)
    joined = "; ".join(line.strip() for line in printable.splitlines() if line.strip())
    return joined if len(joined) <= limit else "…" + joined[-limit:]
