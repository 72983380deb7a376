"""The process of one named session, below the monitor: a run of its own, with the node's broker."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from replication.errors import SeamarkError
from replication.remote.target import parse_target
from replication.session import SessionDir
from scheduler.events import EventBook, Kind
from scheduler.failback import take_back
from scheduler.nesting import check_nesting
from scheduler.opening import begun, locked
from scheduler.options import RunOptions
from scheduler.preflight import check_primary
from scheduler.primary import present
from scheduler.run import Run
from scheduler.status_file import StatusFile
from scheduler.supervisor import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.session import Session
    from tasks.servers import Servers

log = logging.getLogger("seamark.session")
# Longer than its own workers are given to finish.
_STOP = ((signal.SIGTERM, 40.0), (signal.SIGTERM, 10.0))


def session_service(
    state_dir: str,
    name: str,
    servers: Servers,
    keep_log: Callable[[str], None],
    without: frozenset[str] = frozenset(),
) -> Service:
    """The service that replicates one session. ``keep_log`` opens the session's own log, in its process.

    ``without``: roles that another supervisor runs.
    """

    def body() -> int:
        place = SessionDir(Path(state_dir), name)
        report = StatusFile(place)
        try:
            keep_log(name)
            return _replicate(state_dir, place, servers, without)
        except SeamarkError as error:
            report.failed(error.message)
            EventBook(place).state(Kind.FAULTY, error.message)
            log.error("%s: %s", name, error.message)
            return error.exit_code

    return Service(f"session {name}", body, stop_signals=_STOP)


def _replicate(state_dir: str, place: SessionDir, servers: Servers, without: frozenset[str]) -> int:
    """Until told to stop. Raises SeamarkError when it cannot begin, or go on."""
    session = place.load()
    check_nesting(os.fsencode(session.tree), parse_target(session.secondary), state_dir)
    with present(session) as mount:
        session = msgspec.structs.replace(session, root=check_primary(session))
        with locked(place, session):
            place.change_state(id=session.id, instance=session.instance, root=session.root)
            take_back(place, session)
            session = place.load()  # it may be known by now whose way back it is
            options = _options(session, state_dir, servers, without)
            with begun(options, place, session, mount) as opening:
                return Run(options, place, session, lambda _: None, opening).run()


def _options(session: Session, state_dir: str, servers: Servers, without: frozenset[str]) -> RunOptions:
    return RunOptions(
        primary=os.fsencode(session.primary), secondary=session.secondary, state_dir=state_dir, name=session.name,
        sync_method=session.sync_method, jobs=session.jobs, change_detector=session.change_detector, servers=servers,
        without=without, monitored=True,
    )  # fmt: skip
