"""Running a comparison from beginning to end, for somebody who waits for it: by the session's workers, if it runs."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from replication.errors import TemporaryError, UsageError
from replication.progress import Progress
from scheduler.primary import present
from scheduler.procfs import is_there
from scheduler.snapshot import Phase
from scheduler.status_file import last_report
from scheduler.verify.outcome import outcome
from scheduler.verify.settling import Settling
from scheduler.verify.store import Store
from scheduler.verify.verification import Asked, Verification
from scheduler.verify.workers import Fleet, Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replication.session import Session, SessionDir
    from scheduler.verify.outcome import Outcome

_TURN_S = 0.05
_SHOW_S = 0.2
_AWAY_S = 20.0  # without the session's process, or its broker


def runs(place: SessionDir) -> bool:
    """Whether the session is at work."""
    report = last_report(place)
    if report is None or report.snapshot.phase not in (Phase.RUNNING, Phase.IDLE):
        return False
    return is_there(report.pid, report.born) and place.servers.exists()


@contextlib.contextmanager
def conduct(
    place: SessionDir,
    asked: Asked,
    jobs: int | None,
    show: Callable[[Outcome, str], object],
) -> Iterator[Store]:
    """Compare, and give the store with what came of it. ``show``: told of how far it is, and of trouble.

    Raises SeamarkError when it cannot be done, or not to its end.
    """
    session = place.load()
    running = runs(place)
    if not running:
        _may_look(place, asked)
    with contextlib.ExitStack() as stack:
        if not running:
            stack.enter_context(present(session))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verify.", dir=place.path)))
        store = Store(directory / "store.sqlite")
        stack.callback(store.close)
        settling = Settling(place, running=running)
        stack.callback(settling.close)
        hands = jobs or session.jobs
        if running:
            workers: Fleet | Threads = _fleet(place, session, directory.name, settling)
        else:
            workers = Threads(place, session, hands)
        stack.callback(_quietly, workers.close)
        Verification.begin(store, asked)
        verification = Verification(store, workers, settling, hands)
        _go_on(place, verification, store, show, running=running)
        yield store


def _may_look(place: SessionDir, asked: Asked) -> None:
    if asked.repair:
        raise UsageError(
            f"session {place.name} does not run, and only a session that runs can repair: seamark start {place.name}"
        )
    progress = Progress(place.progress) if place.progress.exists() else None
    if progress is None or not progress.has_filled():
        raise UsageError(f"session {place.name} has never replicated anything: there is nothing to compare")
    progress.close()


def _fleet(place: SessionDir, session: Session, run: str, settling: Settling) -> Fleet:
    from tasks.app import use
    from tasks.canvas import name_queues
    from tasks.ledger import Ledger, connect
    from tasks.servers import from_json

    servers = from_json(place.servers.read_bytes())
    os.environ["SEAMARK_STATE_DIR"] = str(place.path.parent.parent)
    name_queues(session)
    use(servers)
    return Fleet(session.name, Ledger(connect(servers, 10.0), session.instance), run, settling)


def _go_on(
    place: SessionDir,
    verification: Verification,
    store: Store,
    show: Callable[[Outcome, str], object],
    *,
    running: bool,
) -> None:
    """Step by step to the end. What is only away for a moment is waited for."""
    import redis
    from kombu.exceptions import OperationalError

    shown = 0.0
    well = time.monotonic()
    while not verification.done:
        moved, trouble = False, verification.trouble
        try:
            moved = verification.step()
            if not running or runs(place):
                well = time.monotonic()
        except (redis.RedisError, OperationalError) as error:
            trouble = f"the broker does not answer: {error}"
        if time.monotonic() - well > _AWAY_S:
            raise TemporaryError(
                f"session {place.name} has not been at work for {_AWAY_S:.0f} s: compare again when it runs"
            )
        if time.monotonic() - shown > _SHOW_S:
            shown = time.monotonic()
            show(outcome(store), trouble)
        if not moved:
            time.sleep(_TURN_S)
    show(outcome(store), "")


def _quietly(close: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        close()
