"""The monitor of a node: keeps alive what the sessions of this node need, and nothing else.

What should run stands in the sessions' own state (Desired), so it survives everything; the monitor
looks at it when it is told to, and every second. Each session has a process of its own, which
keeps its agent, workers and beat alive: one that fails, or is damaged, is no other's trouble.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import selectors
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication.changelog.control import ControlServer
from replication.errors import LockedError, SeamarkError
from replication.private import private_dir
from replication.session import Desired, SessionDir, node_config, session_names
from scheduler import services
from scheduler.events import EventBook, Kind
from scheduler.fleet import FleetSettings
from scheduler.heal import STUCK_S, LeftBehind, ProcessWatch, kill_session
from scheduler.logpipe import LogPipe
from scheduler.monitor_client import SOCKET, monitor_dir
from scheduler.notify import Notifier
from scheduler.procfs import Stillness, me
from scheduler.recording import Recorders
from scheduler.redis_server import EmbeddedRedis
from scheduler.reports import process_problem
from scheduler.session_process import session_service
from scheduler.status_file import StatusFile, last_report
from scheduler.supervisor import Supervisor
from tasks.servers import of_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scheduler.supervisor import Service
    from tasks.servers import Servers

log = logging.getLogger("seamark.monitor")
_LOOK_EVERY_S = 1.0
_RUNNING = (Desired.STARTED, Desired.PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorOptions:
    """One monitor. ``keep_log(name)`` opens the log of a session, in the session's process."""

    state_dir: str
    keep_log: Callable[[str], None]
    servers: Servers | None = None  # None: a Redis of our own, for all sessions
    without: frozenset[str] = frozenset()  # roles that another supervisor runs: services.ROLES
    flower_port: int | None = None
    flower_address: str = "127.0.0.1"
    metrics_port: int | None = None
    metrics_address: str = "127.0.0.1"


class Monitor:
    """All sessions of one state directory, until told to stop."""

    def __init__(self, options: MonitorOptions) -> None:
        self.options = options
        self.directory = monitor_dir(options.state_dir)
        self.stopping = 0
        self._looked = 0.0
        self._sessions: dict[str, Service] = {}
        self._damaged: dict[str, str] = {}
        self._known: dict[str, Desired] = {}  # what was wanted of each when it was last told
        self._notifier = Notifier()
        self._books: dict[str, EventBook] = {}
        self._stillness: dict[str, Stillness] = {}
        self._left: dict[str, LeftBehind] = {}
        self._recorders = Recorders()

    def run(self) -> int:
        """Returns an exit code. Raises LockedError, SeamarkError."""
        with contextlib.ExitStack() as stack:
            lock_fd = stack.enter_context(self._locked())
            self.logs = LogPipe()
            # A process that outlives a monitor which was killed must not keep the next one from mending that.
            self.supervisor = Supervisor(
                self.logs, str(self.directory / "services.log"), str(self.directory / "pids.json"), (lock_fd,)
            )
            self.redis = EmbeddedRedis(self.directory / "redis") if self.options.servers is None else None
            if self.redis is not None:
                stack.enter_context(self.redis)
            self.servers = self.options.servers or of_url(self.redis.url if self.redis is not None else "")
            stack.enter_context(self._signals())
            selector = stack.enter_context(selectors.DefaultSelector())
            server = ControlServer(str(self.directory), selector, self._answer, SOCKET)
            stack.callback(server.close)
            stack.callback(self._stop)
            self.supervisor.add(services.events_service(self.options.state_dir))
            if self.options.metrics_port is not None:
                address = (self.options.metrics_address, self.options.metrics_port)
                self.supervisor.add(services.metrics_service(self.options.state_dir, address))
            if self.options.flower_port is not None:
                self.supervisor.add(services.flower_service(self.options, self.servers))
            self._watch(
                selector, server, FleetSettings(node_config(Path(self.options.state_dir)), self.servers)
            )
        return 0

    # ---- beginning and ending

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """One monitor for a state directory; yields the lock's descriptor. Raises LockedError, SeamarkError."""
        try:
            private_dir(self.directory)
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SeamarkError(f"cannot write in {self.directory}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.write(fd, "{} {}".format(*me()).encode())
            yield fd
        except BlockingIOError:
            raise LockedError(f"another monitor looks after {self.options.state_dir} already") from None
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def asked(_number: int, _frame: Any) -> None:
            self.stopping += 1

        def look(_number: int, _frame: Any) -> None:
            self._looked = 0.0

        wanted = {signal.SIGINT: asked, signal.SIGTERM: asked, signal.SIGHUP: look}
        before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        self._notifier.say("STOPPING=1")

        def keep_going() -> bool:
            self._notifier.alive()
            self.logs.relay()
            return True

        self.supervisor.stop(keep_going)
        self.logs.relay()

    # ---- watching

    def _watch(self, selector: selectors.BaseSelector, server: ControlServer, fleet: FleetSettings) -> None:
        log.info("the monitor of %s is up", self.options.state_dir)
        self._look()
        self._notifier.say("READY=1")
        redis_watch = ProcessWatch("Redis", self.redis.answers if self.redis is not None else lambda: True)
        while not self.stopping:
            for key, _ in selector.select(0.1):
                server.handle(key.fileobj)
            self._notifier.alive()
            self.logs.relay()
            if self.redis is not None and self.redis.ensure():
                log.warning("Redis had ended and was started again: sessions resume from their marks")
            redis_watch.look(self.redis.pid if self.redis is not None else None)
            self.supervisor.watch()
            fleet.look()
            if time.monotonic() - self._looked >= _LOOK_EVERY_S:
                self._look()

    def _look(self) -> None:
        """Start and end sessions, so that what runs is what should."""
        self._looked = time.monotonic()
        desired = {name: self._desired(name) for name in session_names(Path(self.options.state_dir))}
        wanted = {name for name, state in desired.items() if state in _RUNNING}
        for name in [name for name in self._sessions if name not in wanted]:
            log.info("session %s ends", name)
            self.supervisor.retire(self._sessions.pop(name))
        self._heal()
        self._tell_faulty()
        ending = {service.name for service in self.supervisor.services if service.retired}
        for name in sorted(wanted - set(self._sessions)):
            options = self.options
            service = session_service(
                options.state_dir, name, self.servers, options.keep_log, options.without
            )
            if service.name not in ending:
                log.info("session %s begins", name)
                self._sessions[name] = service
                self.supervisor.add(service)
        if "agent" not in self.options.without:
            names = [service.name for service in self.supervisor.services]
            alive = {name.removeprefix("session ") for name in names if name.startswith("session ")}
            alive |= {name for name, state in desired.items() if state is Desired.RECORDING}
            self._recorders.look(
                self.supervisor,
                [SessionDir(Path(self.options.state_dir), name) for name in sorted(alive | wanted)],
            )
        self._notifier.say(f"STATUS={len(self._sessions)} sessions run")

    def _heal(self) -> None:
        """End processes of sessions that are stuck: the supervisor starts them again."""
        for name, service in self._sessions.items():
            report = last_report(SessionDir(Path(self.options.state_dir), name))
            pid = service.pid if report is not None and report.pid == service.pid else 0
            still = self._stillness.setdefault(name, Stillness()).look([pid] if pid else [], time.monotonic())
            if report is not None and report.age() > STUCK_S and still.get(pid, 0.0) > STUCK_S:
                log.warning(
                    "the process of session %s (%d) does not run: killed, to be started again", name, pid
                )
                kill_session(
                    self.supervisor, pid, SessionDir(Path(self.options.state_dir), name).path / "pids.json"
                )
            if service.failing:
                place = SessionDir(Path(self.options.state_dir), name)
                self._left.setdefault(name, LeftBehind(place)).look(self.supervisor)

    def _tell_faulty(self) -> None:
        """An event for each session whose own process cannot tell: it is frozen, or dies again and again."""
        for name, service in self._sessions.items():
            place = SessionDir(Path(self.options.state_dir), name)
            if problem := process_problem(place, _told(service)):
                self._books.setdefault(name, EventBook(place)).state(Kind.FAULTY, problem)

    def _desired(self, name: str) -> Desired | None:
        """What is wanted of a session; None: nothing, here."""
        place = SessionDir(Path(self.options.state_dir), name)
        if not place.named_config.exists():
            self._known.pop(name, None)
            return None  # a run in the foreground looks after itself
        try:
            state = place.state()
        except SeamarkError as error:
            self._tell_damaged(place, error.message)
            return self._not_told(name)
        self._damaged.pop(name, None)
        if state is None:
            # What was damaged is removed, as people are told to: until it is said again what is wanted, it is recorded.
            return Desired.RECORDING if self._known.get(name) is Desired.RECORDING else None
        self._known[name] = state.desired
        return state.desired

    def _not_told(self, name: str) -> Desired:
        """What is done of a session of which nobody can tell what is wanted: what changes meanwhile may be known by its record alone."""
        known = self._known.setdefault(name, Desired.RECORDING)
        if name in self._sessions:
            return Desired.STARTED
        return Desired.RECORDING if known in _RUNNING else known

    def _tell_damaged(self, place: SessionDir, why: str) -> None:
        if self._damaged.get(place.name) != why:
            self._damaged[place.name] = why
            log.error("%s: %s", place.name, why)
            with contextlib.suppress(OSError):
                StatusFile(place).failed(why)

    # ---- answering

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "look":
            self._look()
            return {}
        if op == "status":
            ending = [name for service in self.supervisor.services if (name := _ending(service))]
            sessions = {n: _told(s) for n, s in self._sessions.items()}
            return {"pid": os.getpid(), "sessions": sessions, "ending": ending}
        if op == "hurry":
            self._look()
            for service in self.supervisor.services:
                if service.pid and _ending(service) == request["name"]:
                    os.kill(service.pid, signal.SIGQUIT)
            return {}
        raise ValueError(f"no such operation: {op}")


def _ending(service: Service) -> str:
    """The session whose process this is, while it ends for good; else empty."""
    kind, _, name = service.name.partition(" ")
    return name if service.retired and kind == "session" else ""


def _told(service: Service) -> dict[str, Any]:
    """What others are told of the process of a session. ``deaths``: in a row, ``why``: how the last one was."""
    return {"pid": service.pid, "deaths": service.failing, "why": service.why}
