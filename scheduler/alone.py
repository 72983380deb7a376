"""A process of a session that the monitor did not start: which session, which servers, and how it is run."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import closing
from shlex import quote
from typing import TYPE_CHECKING

import msgspec

from replication.changelog.store import StoreBusy
from replication.errors import ExitCode, LockedError, NotFoundError, SeamarkError, TemporaryError
from replication.progress import Progress
from replication.session import SessionDir, known_session
from replication.sharing import join
from scheduler import recording, services
from scheduler.supervisor import NOT_AGAIN
from tasks.app import use
from tasks.canvas import alive_queue, control_queue, name_queues, node
from tasks.servers import from_json

if TYPE_CHECKING:
    from pathlib import Path

    from replication.session import Session

log = logging.getLogger("seamark.alone")
_servers: tuple[Path, bytes] | None = None


def enter(state_dir: Path, name: str) -> Session:
    """Be a process of this session. Raises SeamarkError: it is not known, or was not started yet."""
    global _servers
    if not name:
        raise NotFoundError("SEAMARK_SESSION names no session")
    place = known_session(state_dir, name)
    session = place.load()
    if place.state() is None or not place.servers.exists():
        raise TemporaryError(
            f"session {name} was not started yet: 'seamark start {name}', and run the monitor"
        )
    os.environ["SEAMARK_STATE_DIR"], os.environ["SEAMARK_SESSION"] = str(state_dir), name
    _servers = place.servers, place.servers.read_bytes()
    try:
        found = from_json(_servers[1])
    except msgspec.DecodeError as error:
        raise SeamarkError(
            f"{place.servers} is damaged ({error}); the monitor writes it anew when it starts the session"
        ) from None
    os.environ.update(found.environment())
    name_queues(session)
    use(found)
    return session


def follow_servers() -> None:
    """End in order when the monitor uses other servers by now: whoever supervises this process starts it with them."""
    if _servers is None:
        return
    path, used = _servers
    try:
        changed = path.read_bytes() != used
    except OSError:
        changed = False  # it is just being written, or was deleted with its session
    if changed:
        log.warning("the servers of this session are others now: this process ends, to be started with them")
        os.kill(os.getpid(), signal.SIGTERM)


def be_agent(place: SessionDir, session: Session) -> int:
    """Record the changes of a session until SIGTERM. Returns an exit code. Raises LockedError."""
    must = session.change_detector == "fanotify"
    try:
        with closing(Progress(place.progress)) as progress:
            join(place, session.primary, progress.changelog_lost)
        code = recording.record(place, session, must_record=must)
    except StoreBusy:
        raise LockedError(
            f"another agent records session {session.name}: the monitor's own, unless it runs --without agent"
        ) from None
    return (ExitCode.ERROR if must else ExitCode.OK) if code == NOT_AGAIN else ExitCode.OK


def commands(state_dir: Path, name: str) -> dict[str, str]:
    """Each role's command line, by its name. Raises SeamarkError."""
    session = enter(state_dir, name)
    where, python = f"env SEAMARK_STATE_DIR={quote(str(state_dir))}", quote(sys.executable)
    celery = f"{where} SEAMARK_SESSION={name} {python} -m celery -A scheduler.roles"

    def worker(role: str, processes: int, queues: list[str]) -> str:
        return (
            f"{celery} worker -n {role}@{node()} -c {processes} --without-gossip --without-mingle "
            f"-Q {','.join([alive_queue(role), *queues])}"
        )

    return {
        "agent": f"{where} {python} -m seamark agent {name}",
        "control": worker("control", services.CONTROL_PROCESSES, [control_queue()]),
        "data": worker("data", session.jobs, services.queues_of_data()),
        "beat": f"{celery} beat",
    }
