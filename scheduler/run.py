"""One run of a session: everything that it needs is started, watched and ended. opening.py comes before it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import redis
from kombu.exceptions import OperationalError

from replication.addresses import shown
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.errors import ExitCode, LockedError, SeamarkError, TemporaryError
from replication.remote.command import close_shared_connection
from scheduler import services
from scheduler.epoch import take_over
from scheduler.heal import ProcessWatch
from scheduler.logpipe import LogPipe
from scheduler.preflight import check_not_emptied, check_secondary, unmounted
from scheduler.snapshot import Phase
from scheduler.status import Status, log_failures
from scheduler.status_file import StatusFile
from scheduler.supervisor import Supervisor
from scheduler.vigil import Vigil
from tasks.app import servers, use
from tasks.canvas import name_queues, publish_signature, retry_signature, tick_signature
from tasks.context import Context
from tasks.ledger import Ledger, connect
from tasks.servers import of_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery import Signature

    from replication.progress import Brick
    from replication.session import Session, SessionDir
    from scheduler.opening import Opening
    from scheduler.options import RunOptions
    from scheduler.snapshot import ProgressSnapshot
    from tasks.servers import Servers

log = logging.getLogger("seamark.run")
_FOLLOW_S = 60.0
_TURN_S = 0.02
_LOOK_EVERY_S = 0.25
_REDIS_S = 2.0
_AT_ONCE = 2  # asked to stop so often: what is under way is given back instead of waited for
_SOON_S = 0.05  # between looks while progress is made
_DATA_AFTER_S = 0.3
_BEAT_AFTER_S = 1.5


def _write_private(path: Path, text: bytes) -> None:
    """A small file for this user alone: it may hold a password."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(text)


def _send(signature: Signature) -> None:
    """Send what beat sends as well, before long: a broker that is away does not end the run."""
    try:
        signature.apply_async()
    except OperationalError as error:
        log.debug("not sent: %s", error)


_POWERS = {
    "chown": "owners and groups cannot be set there",
    "mknod": "device nodes cannot be made there",
    "trusted": "trusted.* attributes cannot be set there",
    "xattr": "extended attributes cannot be set there",
}


def _say_what_cannot_be_kept(session: Session, hello: dict[str, Any]) -> None:
    """Once, at the start: a limit of the secondary's user or file system, and no failure of each file."""
    missing = [words for power, words in _POWERS.items() if not hello.get("fs", {}).get(power, True)]
    if missing:
        log.warning(
            "secondary %s: %s (not root, or the file system cannot)", session.secondary, "; ".join(missing)
        )


class Run:
    """One run: starts everything, watches it, and ends it."""

    def __init__(
        self,
        options: RunOptions,
        place: SessionDir,
        session: Session,
        update: Callable[[ProgressSnapshot], None],
        opening: Opening,
    ) -> None:
        self.opening = opening
        self.options = options
        self.place = place
        self.session = session
        self.update = update
        self.logs = LogPipe()
        self.supervisor = Supervisor(
            self.logs, str(place.path / "services.log"), str(place.path / "pids.json")
        )
        self.redis = opening.redis
        self._redis_watch = ProcessWatch(
            "Redis", self.redis.answers if self.redis is not None else lambda: True
        )
        self.stopping = 0
        self._target: int | None = None
        self._final = 0
        self._started = self._finished = False
        self._follow_until = 0.0
        self._epoch = 0

    def run(self) -> int:
        began = time.time_ns()
        with self._signals(), self._servers() as found:
            os.environ["SEAMARK_STATE_DIR"] = self.options.state_dir
            os.environ.update(found.environment())
            name_queues(self.session.name, self.session.instance)
            _write_private(self.place.servers, found.to_json())
            use(found)
            ctx = Context(self.place, self.session)
            # A Redis that hangs is to be told of, and must not hang whoever tells.
            ctx.ledger = Ledger(connect(found, _REDIS_S), self.session.instance)
            StatusFile(self.place).starting()
            ctx.progress.brick()  # made, or found to be damaged, before anybody else comes to it
            try:
                if self.redis is not None:
                    # It takes a moment to come up, and finds nothing to do in our own Redis before we begin.
                    self.supervisor.add(services.control_worker(self.session))
                hello = check_secondary(self.session, self.opening.look, self.opening.until)
                check_not_emptied(self.session, hello)
                if self.session.adopt and hello["index"] == "new":
                    ctx.progress.forget_secondary()
                _say_what_cannot_be_kept(self.session, hello)
                self._epoch = self._take_over(ctx, hello.get("epoch", 0) + 1)
                self.place.set_detector("scan" if self.session.change_detector == "scan" else "fanotify")
                self._start(found)
                return self._watch(ctx, Status(ctx, began))
            finally:
                self._stop(ctx, idle=self._finished or not self._started)

    def _take_over(self, ctx: Context, at_least: int) -> int:
        """``take_over``; a Redis that has gone since it was checked is a TemporaryError."""
        try:
            return take_over(ctx, at_least)
        except redis.RedisError as error:
            raise TemporaryError(f"redis {shown(servers().redis_url)}: {error}") from None

    # ---- starting and ending

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def asked(_number: int, _frame: Any) -> None:
            self.stopping += 1

        before = {
            number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _servers(self) -> Iterator[Servers]:
        if self.options.servers is not None:
            yield self.options.servers
            return
        assert self.redis is not None
        with self.redis:
            yield of_url(self.redis.url)

    def _start(self, found: Servers) -> None:
        session = self.session
        self._started = True
        _send(tick_signature(session.name))
        if session.change_detector != "scan":
            must = session.change_detector == "fanotify"
            self.supervisor.add(services.agent_service(self.place, session, must_record=must))
        if self.redis is None:
            self.supervisor.add(services.control_worker(session))
        # The processor is wanted for what comes first; a short run never needs these.
        self.supervisor.add(services.data_worker(session), after_s=_DATA_AFTER_S)
        self.supervisor.add(services.beat_service(session), after_s=_BEAT_AFTER_S)
        if self.options.flower_port is not None:
            self.supervisor.add(services.flower_service(self.options.flower_port, found))
            log.info("Flower: http://127.0.0.1:%d", self.options.flower_port)

    def _stop(self, ctx: Context, *, idle: bool) -> None:
        def keep_going() -> bool:
            self.logs.relay()
            return self.stopping < _AT_ONCE

        self.supervisor.stop(keep_going, idle=idle)
        self.logs.relay()
        close_shared_connection(ctx.target, ctx.options)

    # ---- watching

    def _watch(self, ctx: Context, status: Status) -> int:
        looked, again = 0.0, 0
        vigil = Vigil(ctx, self.supervisor)
        while True:
            self.logs.wait(_TURN_S)
            self.logs.relay()
            self._keep_redis(ctx)
            self.supervisor.watch()
            self._need_recorder()
            if ctx.progress.moved():
                again = 2  # counters in Redis may follow what is durable
            now = time.monotonic()
            if not self.stopping and now < looked + (_SOON_S if again else _LOOK_EVERY_S):
                continue
            looked, again = now, max(0, again - 1)
            snapshot = status.look()
            self._refuse_takeover(ctx)
            if self.stopping:
                snapshot = status.look(Phase.STOPPING)
                vigil.look(snapshot)
                self.update(snapshot)
                return ExitCode.INTERRUPTED if self.options.once else ExitCode.OK
            if self.options.once and self._done(ctx):
                code = self._finish(ctx, status)
                vigil.look(status.snapshot)
                return code
            if time.monotonic() > self.opening.until:
                raise TemporaryError(self._too_late(snapshot))
            vigil.look(snapshot)
            self.update(snapshot)

    def _too_late(self, snapshot: ProgressSnapshot) -> str:
        """What a run that is out of time was waiting for."""
        work = f"{snapshot.crawl} crawl, {snapshot.files_done} of {snapshot.files_total} files known so far"
        return (
            f"not done within {self.options.timeout_s:g} s (--timeout); {snapshot.state or 'at work'} ({work}); "
            "the next run goes on from there"
        )

    def _keep_redis(self, ctx: Context) -> None:
        self._redis_watch.look(self.redis.pid if self.redis is not None else None)
        if self.redis is not None and self.redis.ensure():
            log.warning("Redis had ended and was started again: work resumes from the mark")
            _send(tick_signature(self.session.name))

    def _need_recorder(self) -> None:
        """With --change-detector fanotify there is no falling back to scanning. Raises SeamarkError."""
        if self.session.change_detector == "fanotify" and any(
            service.name == "agent" and service.given_up for service in self.supervisor.services
        ):
            raise SeamarkError(
                "changes of the primary cannot be recorded here (the log says why); fanotify needs root, or marks on "
                "each directory a kernel of 5.17 or later; --change-detector auto scans where it cannot record"
            )

    def _refuse_takeover(self, ctx: Context) -> None:
        """A secondary that another run serves by now, or a side that has gone, ends this run."""
        trouble = ctx.trouble()
        if trouble is not None and trouble[0] == "taken-over":
            raise LockedError(trouble[1])
        if trouble is not None and trouble[0] == "primary-gone":
            raise SeamarkError(f"{trouble[1]}; nothing was deleted on the secondary")
        if trouble is not None and trouble[0] == "unmounted":
            raise unmounted(self.session)

    def _done(self, ctx: Context) -> bool:
        """Whether the run has nothing left to do; not while Redis is away."""
        try:
            return self._all_there(ctx)
        except redis.RedisError:
            return False

    def _all_there(self, ctx: Context) -> bool:
        """Whether all that existed at the start, and all that was recorded until the crawl ended, is there."""
        brick = ctx.progress.brick()
        if not brick.complete or brick.crawl is not None:
            return False
        if self.place.detector() == "scan":
            return (
                brick.crawl_ended >= self._epoch
                and not self._on_the_move(ctx)
                and self._published(ctx, brick)
            )
        if self._target is None:
            try:
                self._target = int(agent_call(self.place.changelog, "barrier")["position"])
            except (AgentRefused, AgentUnreachable):
                return False
        return brick.front >= self._target and not self._on_the_move(ctx) and self._published(ctx, brick)

    def _published(self, ctx: Context, brick: Brick) -> bool:
        """Whether the mark of the moment when all was done is on both roots; a task is asked to write it there."""
        self._final = self._final or brick.stime_ns
        if ctx.ledger.published() >= self._final:
            return True
        if ctx.ledger.once_in(1, "publish"):
            _send(publish_signature(self.session.name, brick.epoch))
        return False

    def _on_the_move(self, ctx: Context) -> bool:
        """Whether files that were renamed while they were to be read are still being followed, for a minute."""
        if not any(failure.code == "moved" for failure in ctx.progress.failures()):
            return False
        self._follow_until = self._follow_until or time.monotonic() + _FOLLOW_S
        if time.monotonic() > self._follow_until:
            return False
        if ctx.ledger.once_in(1, "follow"):
            _send(retry_signature(self.session.name))
        return True

    def _finish(self, ctx: Context, status: Status) -> int:
        self._finished = True
        lines = log_failures(ctx)
        for line in lines:
            log.error("%s", line)
        self.update(status.look(Phase.FINISHED if not lines else Phase.FAILED))
        return ExitCode.PARTIAL if lines else ExitCode.OK
