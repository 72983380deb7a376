"""Who does the units of a comparison: the workers of a session that runs, or else threads of this process."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from replication.errors import SeamarkError
from replication.progress import has_filled
from replication.remote.launch import open_secondary
from replication.remote.look import client_of, ssh_options
from replication.remote.target import parse_target
from replication.secondary.filters import Filters
from replication.verify.unit import run_unit
from replication.volume.opening import open_volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.session import Session, SessionDir
    from scheduler.verify.settling import Settling
    from tasks.ledger import Ledger

log = logging.getLogger("seamark.verify")
_SILENT_S = 20.0


class Fleet:
    """The session's workers, by Celery groups. ``run``: names this comparison among others."""

    def __init__(self, session: str, ledger: Ledger, run: str, settling: Settling) -> None:
        from tasks.verify import Board

        self._session = session
        self._run = run
        self._settling = settling
        self._board = Board(ledger, run)
        self._looked = float("-inf")

    def send(self, units: dict[int, dict[str, Any]]) -> None:
        """Raises redis.RedisError and the like while the broker is away: then these are lost, and sent again."""
        from tasks.verify import send

        named = {str(number): payload for number, payload in units.items()}
        self._board.put(named)
        send(self._session, self._settling.epoch, self._run, named)

    def take(self) -> dict[int, dict[str, Any]]:
        return {int(unit): outcome for unit, outcome in self._board.take().items()}

    def lost(self, units: list[int]) -> list[int]:
        """Units of which nobody gives a sign of life, and that wait in no queue either."""
        if time.monotonic() < self._looked + 2.0:
            return []
        self._looked = time.monotonic()
        from tasks.canvas import VERIFY, control_queue, data_queue
        from tasks.queues import lengths

        ages = self._board.ages([str(unit) for unit in units])
        waits = any(lengths((data_queue(VERIFY), control_queue())).values())
        return [u for u in units if ages[str(u)] > (1e8 if waits else _SILENT_S)]

    def close(self) -> None:
        self._board.clear()


class Threads:
    """Threads of this process, for a session that does not run: each thread has a connection of its own, and only looks."""

    def __init__(self, place: SessionDir, session: Session, jobs: int) -> None:
        self._place = place
        self._session = session
        self._todo: queue.SimpleQueue[tuple[int, dict[str, Any]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        for thread in self._threads:
            thread.start()

    def send(self, units: dict[int, dict[str, Any]]) -> None:
        for unit in units.items():
            self._todo.put(unit)

    def take(self) -> dict[int, dict[str, Any]]:
        found = {}
        while not self._done.empty():
            number, outcome = self._done.get()
            found[number] = outcome
        return found

    def lost(self, _units: list[int]) -> list[int]:
        return []

    def close(self) -> None:
        for _ in self._threads:
            self._todo.put(None)

    def _work(self) -> None:
        end: Callable[[], object] = lambda: None  # noqa: E731
        do: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        while (unit := self._todo.get()) is not None:
            number, payload = unit
            try:
                if do is None:
                    do, end = self._open()
                outcome = do(payload)
            except (SeamarkError, OSError) as error:
                outcome = {"trouble": [str(getattr(error, "code", "unreachable")), str(error)]}
                end()
                do = None
            except Exception as error:
                log.exception("unit %d", number)
                outcome = {"trouble": ["unexpected", f"{type(error).__name__}: {error}"]}
            self._done.put((number, outcome))
        end()

    def _open(self) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[], object]]:
        """What does a unit on a fresh connection, and what ends that. Raises SeamarkError."""
        session = self._session
        volume = open_volume(session, session.root)
        link = open_secondary(parse_target(session.secondary), ssh_options(self._place, session))
        try:
            client = client_of(link)
            hello = client.hello(
                session=session.id, volume=session.root or session.id, epoch=0, read_only=True,
                filled=has_filled(self._place.progress), filters=session.filters,
            )  # fmt: skip
        except BaseException:
            link.close()
            volume.close()
            raise

        def end() -> None:
            link.close()
            volume.close()

        def do(payload: dict[str, Any]) -> dict[str, Any]:
            return run_unit(payload, volume, client, Filters(session.filters), hello["fs"], lambda: None)

        return do, end
