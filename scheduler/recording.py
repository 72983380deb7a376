"""The agent, as a process of a session or of the monitor: who records a volume, and who only hears of it.

Whoever has the lock of a changelog records. The agents of other sessions with the same primary follow that one: they say
to their session what it says, and when it ends for good, one of them takes its place. Where there is a monitor it has a
process for each volume that records, so that it is no matter which session ends, or dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from replication import sharing
from replication.agent import AgentConfig, RecorderUnavailable, StoreBusy, run_agent
from replication.changelog.control import AgentRefused, AgentUnreachable, Follower, agent_call
from replication.remote.nodes import node_command
from replication.volume.gluster import VolumeAway
from scheduler.heal import ProcessWatch
from scheduler.supervisor import NOT_AGAIN, Service
from tasks import alive
from tasks.canvas import tick_signature
from tasks.context import context

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from replication.changelog.index import SegmentInfo
    from replication.errors import SeamarkError
    from replication.session import Session, SessionDir
    from scheduler.supervisor import Supervisor

log = logging.getLogger("seamark.services")
PATIENCE_S = 5.0  # for the monitor's own agent to be there, or to be there again
_SILENT_S = 30.0  # the agent says something every 5 s
_AGAIN_S = 0.2
_AWAY_AGAIN_S = 1.0
_AWAY_S = 60.0  # bricks that cannot be followed for longer are no restart: changes are found by scanning until they can be


def agent_service(
    place: SessionDir, session: Session, *, must_record: bool, patience_s: float = 0.0
) -> Service:
    """The agent of a session; with ``must_record`` its absence is an error, else scanning takes its place."""
    return Service("agent", lambda: record(place, session, must_record=must_record, patience_s=patience_s))


def volume_service(volume: Path) -> Service:
    """The agent of a volume, for all sessions that use its changelog."""
    return Service(f"agent {volume.name}", lambda: _record_volume(volume))


@contextlib.contextmanager
def _until_told() -> Iterator[tuple[threading.Event, int]]:
    """An event that SIGTERM sets, and a descriptor that is readable from then on."""
    stop = threading.Event()
    wake_fd, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(written)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    yield stop, wake_fd


def record(place: SessionDir, session: Session, *, must_record: bool, patience_s: float = 0.0) -> int:
    """Be the agent of a session until SIGTERM: 0, or NOT_AGAIN where changes cannot be recorded.

    ``patience_s``: how long another agent is waited for before this one records itself. Raises StoreBusy where the session
    has an agent already.
    """
    with _until_told() as (stop, wake_fd), _only_one(place):
        alive.become(alive.AGENT)
        agent = _SessionAgent(place, session, stop, wake_fd)
        until = time.monotonic() + patience_s
        while not stop.is_set():
            if agent.follow():
                until = time.monotonic() + patience_s
            elif time.monotonic() < until:
                select.select([wake_fd], [], [], _AGAIN_S)
            else:
                with contextlib.suppress(StoreBusy):
                    return agent.record(must_record=must_record)
                select.select([wake_fd], [], [], _AGAIN_S)
    return 0


@contextlib.contextmanager
def _only_one(place: SessionDir) -> Iterator[None]:
    """One agent for a session. Raises StoreBusy."""
    fd = os.open(place.path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StoreBusy(f"session {place.name} has an agent already") from None
    finally:
        os.close(fd)


class _SessionAgent:
    """The agent of one session, whether it records or follows."""

    def __init__(self, place: SessionDir, session: Session, stop: threading.Event, wake_fd: int) -> None:
        self._place = place
        self._session = session
        self._stop = stop
        self._wake_fd = wake_fd

    def _tick(self, number: int | None = None, state: str = "", records: int = 0) -> None:
        context(self._session.name)  # which takes over how much is to be logged
        if number is not None:
            log.debug("position %d: %s, %d records", number, state, records)
        try:
            tick_signature(self._session.name).apply_async()
        except Exception as error:
            log.debug("no tick sent: %s", error)

    def _closed(self, info: SegmentInfo) -> None:
        self._tick(info.number, info.state, info.records)

    def _ready(self, mode: str) -> None:
        self._place.set_detector(mode)
        self._tick()

    def follow(self) -> bool:
        """Say to the session what the agent of its volume says, as long as that lives. False: there is none."""
        try:
            follower = Follower(self._place.changelog)
        except AgentUnreachable:
            return False
        except AgentRefused as error:
            log.warning("%s", error)
            return False
        heard = time.monotonic()
        try:
            self._ready(follower.mode)
            while not self._stop.is_set() and time.monotonic() < heard + _SILENT_S:
                select.select([follower.fileno(), self._wake_fd], [], [], _SILENT_S / 10)
                for said in follower.read():
                    heard = time.monotonic()
                    if "alarm" in said:
                        log.warning("%s", said["alarm"])
                    else:
                        self._tick(int(said["number"]), str(said["state"]), int(said["records"]))
        except AgentUnreachable as error:
            log.debug("%s", error)
        finally:
            follower.close()
        return True

    def record(self, *, must_record: bool) -> int:
        """Record until told to stop; where that is not possible at the moment, as soon as it is. Raises StoreBusy."""
        session = self._session
        config = AgentConfig(
            root=session.tree, directory=str(self._place.changelog),
            close_after_ms=round(session.segment_interval * 1000), max_bytes=session.changelog_limit,
            gluster=session.gluster.volume if session.gluster is not None else "",
            nodes=partial(node_command, self._place, session) if self._place.nodes_key.exists() else None,
        )  # fmt: skip
        if session.gluster is None:  # the mount of a volume is a session's own, and so is its agent
            volume = sharing.volume_dir(self._place.path.parent.parent, session.primary)
            config = replace(config, **_shared(volume))
        began, said, scanning = time.monotonic(), "", must_record
        while not self._stop.is_set():
            try:
                run_agent(config, self._closed, self._stop, ready=self._ready, wake_fd=self._wake_fd)
            except RecorderUnavailable as error:
                if must_record:
                    log.critical("changes cannot be recorded: %s", error)
                    return NOT_AGAIN
                self._scan_instead(error)
                return NOT_AGAIN
            except VolumeAway as error:
                if str(error) != said:
                    log.warning("changes cannot be recorded at the moment: %s", error)
                    said = str(error)
                if not scanning and time.monotonic() > began + _AWAY_S:
                    scanning = True
                    self._scan_instead(error)
                select.select([self._wake_fd], [], [], _AWAY_AGAIN_S)
        return 0

    def _scan_instead(self, error: SeamarkError | RecorderUnavailable) -> None:
        log.warning("changes cannot be recorded (%s): scanning instead", error)
        self._place.set_detector("scan")
        self._tick()


class _Shared(TypedDict):
    consumers: Callable[[], Collection[str]]
    needs: Callable[[], tuple[int, int] | None]


def _shared(volume: Path) -> _Shared:
    """What the agent of a volume has to ask again and again."""
    return {
        "consumers": lambda: [place.name for place in sharing.consumers(volume)],
        "needs": partial(sharing.needs, volume),
    }


def _record_volume(volume: Path) -> int:
    """Record for all sessions that use the changelog of a volume, until SIGTERM: 0, or NOT_AGAIN."""
    with _until_told() as (stop, wake_fd):
        while not stop.is_set():
            primary, needs = sharing.primary_of(volume), sharing.needs(volume)
            if primary is None or needs is None:
                return NOT_AGAIN
            config = AgentConfig(
                root=primary, directory=str(volume / "changelog"), close_after_ms=needs.close_after_ms,
                max_bytes=needs.max_bytes, **_shared(volume),
            )  # fmt: skip
            try:
                run_agent(config, lambda _: None, stop, wake_fd=wake_fd)
            except StoreBusy:  # a run in the foreground records
                select.select([wake_fd], [], [], _AGAIN_S)
            except RecorderUnavailable as error:
                log.info("%s: %s", primary, error)  # each session says what it does about that
                return NOT_AGAIN
            except OSError as error:
                log.error("%s cannot be recorded at the moment: %s", primary, error)
                return 1
    return 0


class Recorders:
    """The agents of a monitor: one for each volume whose changelog is used by a session that is at work."""

    def __init__(self) -> None:
        self._services: dict[Path, Service] = {}
        self._watches: dict[Path, ProcessWatch] = {}

    def look(self, supervisor: Supervisor, places: Iterable[SessionDir]) -> None:
        """Start and end agents, so that what runs is what should. ``places``: sessions that run, are ending, or only record."""
        wanted = {volume for place in places if (volume := sharing.volume_of(place)) is not None}
        for volume in [volume for volume in self._services if volume not in wanted]:
            supervisor.retire(self._services.pop(volume))
            del self._watches[volume]
        ending = {service.name for service in supervisor.services if service.retired}
        for volume in sorted(wanted - set(self._services)):
            service = volume_service(volume)
            if service.name not in ending:
                self._services[volume] = service
                self._watches[volume] = ProcessWatch(service.name, partial(_answers, volume))
                supervisor.add(service)
        for volume, watch in self._watches.items():
            watch.look(self._services[volume].pid or None)


def _answers(volume: Path) -> bool:
    try:
        agent_call(volume / "changelog", "status", timeout=1.0)
    except AgentUnreachable:
        return False
    except AgentRefused:
        pass
    return True
