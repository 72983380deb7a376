"""Keeping processes alive: started by fork, restarted with back-off when they die, ended in order.

Everything was imported once by the parent, so a fork starts a worker in milliseconds where a new
interpreter takes half a second; that is why no supervision library is used here. The parent stays
single-threaded, or forking would not be safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler.logpipe import LogPipe

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("seamark.monitor")
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl
LONG_ENOUGH_S = 30.0  # alive for so long: the next death is a new story
_MOST_DELAY_S = 15.0

NOT_AGAIN = 77  # a service that exits with this is not started again


@dataclass(slots=True)
class Service:
    """One process to keep alive. ``stop_signals``: each is sent in turn, with so many seconds to obey."""

    name: str
    body: Callable[[], int]
    stop_signals: tuple[tuple[signal.Signals, float], ...] = ((signal.SIGTERM, 10.0),)
    droppable: bool = False  # may be killed while nothing is under way
    apart: bool = False  # another supervisor runs it: here it is only looked after for signs of life
    pid: int = 0
    started: float = 0.0
    deaths: int = 0
    not_before: float = 0.0
    finished: bool = False
    given_up: bool = False  # it said itself that starting it again is no use
    retired: float = 0.0  # when it was asked to end for good; 0: it was not
    told: int = -1  # the last of its stop signals that it was sent
    why: str = field(default="", compare=False)

    @property
    def failing(self) -> int:
        """How often in a row it died soon after its start; 0 once it is alive for long enough."""
        alive = self.pid and time.monotonic() - self.started > LONG_ENOUGH_S
        return 0 if alive else self.deaths


_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


class Supervisor:
    """Starts services, notices their deaths, restarts them; ``stop`` ends them in reverse order."""

    def __init__(self, logs: LogPipe, output: str, pids: str, own_fds: tuple[int, ...] = ()) -> None:
        """``own_fds``: open files that services do not keep open, such as a lock that says that this process lives."""
        self._logs = logs
        self._own_fds = own_fds
        self._output = output  # file for what services print
        self._pids = pids  # file that says which process each service is, for people and scripts
        self.services: list[Service] = []

    def add(self, service: Service, after_s: float = 0.0) -> None:
        """Start it, now or when ``watch`` is called after so many seconds."""
        self.services.append(service)
        if service.apart:
            service.started = time.monotonic()
            self._write_pids()
        elif after_s:
            service.not_before = time.monotonic() + after_s
        else:
            self._start(service)

    def _start(self, service: Service) -> None:
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # What is sent to it before it has let go of our handlers would be lost, and so would what is sent to its group
        # before there is one: it waits for the first, and both of us make the second.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            service.pid, service.started, service.told = pid, time.monotonic(), -1
            self._write_pids()
            return
        code = 1
        try:
            for fd in self._own_fds:
                os.close(fd)
            _become_child(parent, self._logs, self._output)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = service.body()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0
        except BaseException:
            logging.getLogger("seamark.monitor").exception("%s failed", service.name)
            traceback.print_exc()
        finally:
            os._exit(code)

    def _write_pids(self) -> None:
        text = json.dumps({service.name: service.pid for service in self.services if service.pid})
        with open(f"{self._pids}.new", "w", encoding="ascii") as file:
            file.write(text)
        os.replace(f"{self._pids}.new", self._pids)

    def watch(self) -> None:
        """Reap what died, and start again what is due. Never blocks."""
        for service in self.services[:]:
            if service.pid and service.retired:
                self._urge(service, time.monotonic() - service.retired)
            if service.pid:
                self._reap(service)
            if service.retired and not service.pid:
                self.services.remove(service)
                self._write_pids()
            elif (
                not (service.pid or service.apart or service.finished)
                and time.monotonic() >= service.not_before
            ):
                if service.started:
                    log.info("starting %s again", service.name)
                self._start(service)

    def retire(self, service: Service) -> None:
        """Have one service end for good: ``watch`` sees to it, and then forgets it."""
        service.finished = True
        service.retired = service.retired or time.monotonic()

    @staticmethod
    def kill(pid: int) -> None:
        """End a service, and whatever it started, at once; ``watch`` then starts it again."""
        _kill_group(pid, signal.SIGKILL)

    def _reap(self, service: Service) -> None:
        pid, status = os.waitpid(service.pid, os.WNOHANG)
        if not pid:
            return
        code = os.waitstatus_to_exitcode(status)
        _kill_group(service.pid, signal.SIGKILL)  # pool processes that outlived their parent
        service.pid = 0
        if service.retired:
            return
        if code == NOT_AGAIN:
            service.finished = service.given_up = True
            return
        if time.monotonic() - service.started > LONG_ENOUGH_S:
            service.deaths = 0
        service.deaths += 1
        delay = min(0.2 * 2 ** (service.deaths - 1), _MOST_DELAY_S)
        service.not_before = time.monotonic() + delay
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        service.why = how
        log.warning("%s ended (%s); next start in %.1f s", service.name, how, delay)

    def stop(self, keep_going: Callable[[], bool], *, idle: bool = False) -> None:
        """End all services together; ``keep_going`` is called while waiting.

        ``idle``: nothing is under way, so that workers need not be waited for (they take two seconds). They are not
        either once ``keep_going`` returns False.
        """
        for service in self.services:
            service.finished = True
        began = time.monotonic()
        while running := [service for service in self.services if service.pid]:
            for service in running:
                hurry = idle and service.droppable
                self._urge(service, time.monotonic() - began, hurry=hurry)
                pid, _ = os.waitpid(service.pid, os.WNOHANG)
                if pid:
                    _kill_group(pid, signal.SIGKILL)
                    service.pid = 0
            idle = not keep_going() or idle
            time.sleep(0.005)

    @staticmethod
    def _urge(service: Service, waited_s: float, *, hurry: bool = False) -> None:
        """Send the next of a service's stop signals when it is due; in the end, SIGKILL."""
        due = 0.0
        steps = [*service.stop_signals, (signal.SIGKILL, math.inf)]
        if hurry:
            steps = [*((number, 0.0) for number, _ in service.stop_signals), (signal.SIGKILL, math.inf)]
        for step, (number, patience) in enumerate(steps):
            if waited_s >= due and service.told < step:
                service.told = step
                if number == signal.SIGKILL:
                    log.log(
                        logging.DEBUG if hurry else logging.WARNING, "%s did not end by itself", service.name
                    )
                    _kill_group(service.pid, number)
                else:
                    os.kill(service.pid, number)
            due += patience


def _become_child(parent: int, logs: LogPipe, output: str) -> None:
    """A process group of its own (Ctrl-C is for the parent, which ends us in order), and no longer than it."""
    os.setpgid(0, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGWINCH, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(null)
    os.close(out)
    logs.use_in_child()


def _kill_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
