"""The faults of a plan, injected when they are due, and all taken back in the end."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from operator import itemgetter

import redis

from tests.system.thrash.stage import identity

_JUMPS_S = [-7200, -90, -5, 5, 90, 7200]
_CUT_AFTER = (4, 20)  # bytes, as powers of 2
_RELEASE_S = 5


class Chaos(threading.Thread):
    """Plays the faults of a stage's plan. ``done`` counts those that took place, ``missed`` the others."""

    def __init__(self, stage):
        super().__init__(daemon=True)
        self.stage, self.plan = stage, stage.plan
        self.done, self.missed = Counter(), Counter()
        self.log: list[str] = []
        self.error: BaseException | None = None
        self._draw = random.Random(stage.plan.seed + 1)
        self._undo: list = []  # (when, what)
        self._began = 0.0

    def run(self):
        for part in (self._play, self.stage.cont, self._take_all_back):
            try:
                part()
            except BaseException as error:  # the run fails with it
                self.error = self.error or error

    def _play(self):
        self._began = time.monotonic()
        due = list(self.plan.faults)
        while (now := time.monotonic() - self._began) < self.plan.seconds:
            while due and due[0].at <= now:
                self._inject(due.pop(0))
            self._take_back(now)
            self.stage.keep_up()
            time.sleep(0.02)

    def _inject(self, fault):
        took = getattr(self, "inject_" + fault.kind.replace(" ", "_").replace("-", "_"))(fault)
        (self.done if took else self.missed)[fault.name] += 1
        self.log.append(f"{time.time():.2f} {fault.name} for {fault.lasts:.1f} s: {took or 'not possible'}")

    def _later(self, fault, what):
        self._undo.append((time.monotonic() - self._began + fault.lasts, what))

    def _take_back(self, now):
        """What is due; the last first, as a file system has to be writable again before room is made on it."""
        for item in sorted((item for item in self._undo if item[0] <= now), key=itemgetter(0), reverse=True):
            try:
                item[1]()
            except OSError:
                continue  # tried again
            self._undo.remove(item)

    def _take_all_back(self):
        until = time.monotonic() + _RELEASE_S
        while self._undo:
            self._take_back(math.inf)
            assert time.monotonic() < until, self._undo

    # ---- one method for each kind; what it returns says what was done

    def inject_kill(self, fault):
        found = self.stage.processes(fault.target)
        if not found:
            return ""
        pid = self._draw.choice(found)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if fault.target == "sshd":
            self.stage.sshd.process.wait()
            self._later(fault, self._sshd_up)
        if fault.target == "redis" and self.stage.broker:
            self.stage.broker.process.wait()
            self._later(fault, self._broker_up)
        return f"pid {pid}"

    def _sshd_up(self):
        if self.stage.sshd.process.poll() is not None:
            self.stage.sshd.start()

    def _broker_up(self):
        if self.stage.broker.process.poll() is not None:
            self.stage.broker.start()

    def inject_stop(self, fault):
        found = self.stage.processes(fault.target)
        if not found:
            return ""
        who = identity(self._draw.choice(found))
        with contextlib.suppress(ProcessLookupError):
            os.kill(who[0], signal.SIGSTOP)
        self._later(fault, lambda: _continue(who))
        return f"pid {who[0]}"

    def inject_flush(self, fault):
        with contextlib.suppress(OSError, redis.RedisError):
            with self.stage.redis() as client:
                client.flushall()
            return "emptied"
        return ""

    def inject_old_dump(self, fault):
        """What Redis holds now comes back when it is old."""
        with contextlib.suppress(OSError, redis.RedisError):
            with self.stage.redis() as client:
                old = self.stage.broker.keep(client)
            self._later(fault, lambda: self.stage.broker.bring_back(old))
            return "kept, to come back"
        return ""

    def inject_cut(self, fault):
        """The link, in the middle of what is sent; if nothing is sent for so long, then of nothing."""
        size = int(2 ** self._draw.uniform(*_CUT_AFTER))
        self.stage.wire.cut_after(size)
        self._later(fault, self.stage.wire.cut_now)
        return f"after {size} bytes"

    def inject_slow(self, fault):
        """All that is sent is held for a while, in both directions."""
        self.stage.wire.delay_s = self._draw.uniform(0.01, 0.2)
        self._later(fault, lambda: setattr(self.stage.wire, "delay_s", 0.0))
        return f"{self.stage.wire.delay_s:.2f} s"

    def inject_full(self, fault):
        file = self.stage.secondary_fs / "ballast"
        with contextlib.suppress(OSError), open(file, "wb") as ballast:  # it may be read-only
            for size in (1 << 26, 1 << 23, 1 << 20, 1 << 16, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        at = os.fstat(ballast.fileno()).st_size
                        os.posix_fallocate(ballast.fileno(), at, size)
            self._later(fault, lambda: file.unlink(missing_ok=True))
            return f"ballast of {os.fstat(ballast.fileno()).st_size >> 20} MiB"
        return ""

    def inject_read_only(self, fault):
        """The kernel refuses it while a file is open for writing: those who hold one are killed."""
        where, until = self.stage.secondary_fs, time.monotonic() + _RELEASE_S
        while subprocess.run(
            ["mount", "-o", "remount,ro", where], capture_output=True, check=False
        ).returncode:
            if time.monotonic() > until:
                return ""
            for pid in self.stage.processes("secondary agent"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._later(fault, lambda: _writable(where))
        return "remounted"

    def inject_clock(self, fault):
        jump = self._draw.choice(_JUMPS_S)
        self.stage.set_clock(jump)
        self._later(fault, lambda: self.stage.set_clock(0))
        return f"by {jump} s"


def _continue(who):
    if identity(who[0]) == who:
        with contextlib.suppress(ProcessLookupError):
            os.kill(who[0], signal.SIGCONT)


def _writable(where):
    done = subprocess.run(["mount", "-o", "remount,rw", where], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr)
