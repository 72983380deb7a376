"""The data worker of a host that is not the primary's node: one Celery worker for all sessions that it serves."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from celery.platforms import SecurityWarning

from replication.errors import LockedError, SeamarkError, UsageError
from replication.joined import JoinedDir, joined, joined_file, joined_names
from replication.private import private_dir
from replication.remote.command import close_shared_connection
from replication.remote.look import ssh_options
from replication.remote.target import parse_target
from replication.session import Session
from scheduler import services
from tasks import trace
from tasks.app import app, use
from tasks.canvas import data_queues

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasks.servers import Servers


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """One data worker. ``autoscale``: most and fewest processes, instead of ``processes``."""

    state_dir: str
    servers: Servers
    name: str  # of this worker, unlike all others of the broker
    processes: int = 2
    autoscale: tuple[int, int] | None = None


def default_name() -> str:
    return f"worker@{socket.gethostname()}"


def sessions_to_serve(state_dir: str, names: tuple[str, ...]) -> list[Session]:
    """The joined sessions of these names; of none: all. Raises SeamarkError for one that is not as it should be."""
    wanted = names or tuple(joined_names(Path(state_dir)))
    if not wanted:
        raise UsageError(
            f"no session was joined here: 'seamark workers export NAME' on the primary's node prints the file for "
            f"{joined_file(Path(state_dir), 'NAME')}"
        )
    return [_checked(joined(Path(state_dir), name)) for name in wanted]


def _checked(place: JoinedDir) -> Session:
    session = place.load()
    if not os.path.isdir(session.primary):
        raise UsageError(f"{place.config}: primary: {session.primary} is no directory of this host")
    private_dir(place.path)
    return session


def queues_of(sessions: list[Session]) -> list[str]:
    return [queue for session in sessions for queue in data_queues(f"{session.name}.{session.instance}")]


def plain_celery(options: WorkerOptions, sessions: list[Session]) -> str:
    """The command that runs the same worker without us, for those who have their own supervisor."""
    many = "--autoscale={},{}".format(*options.autoscale) if options.autoscale else f"-c {options.processes}"
    return (
        f"SEAMARK_STATE_DIR={quote(options.state_dir)} {quote(sys.executable)} -m celery -A tasks.app worker -n {options.name} {many} "
        f"--without-gossip --without-mingle -l WARNING -Q {','.join(queues_of(sessions))}"
    )


def run_worker(options: WorkerOptions, sessions: list[Session]) -> int:
    """Until told to stop; SIGTERM lets running tasks finish. Raises LockedError, SeamarkError."""
    os.environ["SEAMARK_STATE_DIR"] = options.state_dir
    os.environ.update(options.servers.environment())
    use(options.servers)
    warnings.filterwarnings("ignore", category=SecurityWarning)
    logging.getLogger("celery").setLevel(logging.WARNING)
    services.hurry_children()
    trace.mark_records()
    with _locked(options):
        many = {"autoscale": options.autoscale} if options.autoscale else {"concurrency": options.processes}
        worker = app.Worker(
            hostname=options.name, queues=queues_of(sessions), pool="prefork", loglevel="WARNING",
            without_gossip=True, without_mingle=True, quiet=True, **many,
        )  # fmt: skip
        worker.start()
        for session in sessions:
            place = JoinedDir(Path(options.state_dir), session.name)
            close_shared_connection(parse_target(session.secondary), ssh_options(place, session))
        return int(worker.exitcode or 0)


@contextlib.contextmanager
def _locked(options: WorkerOptions) -> Iterator[None]:
    """One worker of a name on this host: Celery would take two of them for one."""
    folder = Path(options.state_dir) / "workers"
    try:
        private_dir(folder)
        fd = os.open(
            folder / f"{options.name.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise SeamarkError(f"cannot write in {folder}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LockedError(f"a worker {options.name} runs here already; give another --name") from None
    finally:
        os.close(fd)
