"""One run of a session: everything that it needs is started, watched and ended. opening.py comes before it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import redis

from replication.addresses import shown
from replication.errors import ExitCode, LockedError, SeamarkError, TemporaryError
from replication.remote.command import close_shared_connection
from replication.session import node_name
from replication.session_file import replace_file
from replication.sharing import join, leave
from replication.volume.storage import shared_kind
from scheduler import recording, services
from scheduler.completion import Completion
from scheduler.epoch import begin
from scheduler.heal import ProcessWatch
from scheduler.lease import Lease
from scheduler.logpipe import LogPipe
from scheduler.monitor_client import ask_monitor
from scheduler.preflight import check_not_emptied, check_secondary, look_at_secondary, unmounted
from scheduler.primary import have_recorded
from scheduler.send import send
from scheduler.snapshot import Phase
from scheduler.standby import Standby, SteppedBack
from scheduler.status import Status, log_failures
from scheduler.status_file import StatusFile
from scheduler.supervisor import Supervisor
from scheduler.vigil import Vigil
from tasks.app import servers, use
from tasks.canvas import name_queues, tick_signature
from tasks.context import Context
from tasks.ledger import Ledger, connect
from tasks.servers import of_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replication.session import Session, SessionDir
    from scheduler.opening import Opening
    from scheduler.options import RunOptions
    from scheduler.preflight import InChild
    from scheduler.snapshot import ProgressSnapshot
    from scheduler.supervisor import Service
    from tasks.servers import Servers

log = logging.getLogger("seamark.run")
_TURN_S = 0.02
_LOOK_EVERY_S = 0.25
_REDIS_S = 2.0
_LEASE_S = 1.0
_AT_ONCE = 2  # asked to stop so often: what is under way is given back instead of waited for
_SOON_S = 0.05  # between looks while progress is made
_DATA_AFTER_S = 0.3
_BEAT_AFTER_S = 1.5


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
    if os.geteuid() != 0 and _POWERS["trusted"] not in missing:
        log.warning("primary %s: trusted.* attributes cannot be read (not root)", session.primary)


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
        self.supervisor = self._supervisor()
        self.standby: Standby | None = None  # where other nodes may run the session as well
        self._first_look: InChild | None = opening.look
        self.redis = opening.redis
        self._redis_watch = ProcessWatch(
            "Redis", self.redis.answers if self.redis is not None else lambda: True
        )
        self.stopping = 0
        self._started = self._finished = False
        self._epoch = 0
        self._scans = False

    def _supervisor(self) -> Supervisor:
        path = self.place.path
        return Supervisor(self.logs, str(path / "services.log"), str(path / "pids.json"))

    def run(self) -> int:
        with self._signals(), self._servers() as found:
            os.environ["SEAMARK_STATE_DIR"] = self.options.state_dir
            os.environ.update(found.environment())
            name_queues(self.session)
            replace_file(self.place.servers, found.to_json().decode())  # roles apart read it at any time
            use(found)
            ctx = Context(self.place, self.session)
            # A Redis that hangs is to be told of, and must not hang whoever tells.
            ctx.ledger = Ledger(connect(found, _REDIS_S), self.session.instance)
            StatusFile(self.place).starting()
            if self.options.once:  # what was asked before may have been agreed to: it is asked anew
                ctx.progress.hold(replace(ctx.progress.held(), question=""))
            ctx.progress.brick()  # made, or found to be damaged, before anybody else comes to it
            if self.redis is not None:
                return self._work(ctx, found)
            lease = Lease(connect(found, _LEASE_S), self.place, self.session, node_name())
            self.standby = Standby(ctx, lease, self.update)
            return self._take_turns(ctx, found, self.standby)

    def _take_turns(self, ctx: Context, found: Servers, standby: Standby) -> int:
        """Work whenever no other node does. Raises SeamarkError."""
        try:
            if not standby.take():
                standby.check_own()
                if self.options.once and standby.active is not None:
                    raise LockedError(f"node {standby.active.node} runs session {self.session.name}")
                if standby.active is not None:
                    leave(self.place)  # as where it steps back: below
                self._look(ctx, lambda: None)  # what would keep this node from taking over is said now
            while standby.wait(lambda: self.stopping or time.monotonic() > self.opening.until):
                try:
                    return self._work(ctx, found)
                except SteppedBack as why:
                    if self.options.once:
                        raise LockedError(str(why)) from None
                    log.warning("%s: %s; this node waits", self.session.name, why)
            if not self.stopping:
                raise TemporaryError(
                    "Redis has not answered in time (--timeout); the next run goes on from there"
                )
            return ExitCode.INTERRUPTED if self.options.once else ExitCode.OK
        finally:
            standby.end()

    def _work(self, ctx: Context, found: Servers) -> int:
        """Begin, and go on until told to stop, or done. Raises SeamarkError, SteppedBack."""
        began = time.time_ns()
        self.supervisor, self._started = self._supervisor(), False
        StatusFile(self.place).starting()
        try:
            if self.redis is not None:
                # It takes a moment to come up, and finds nothing to do in our own Redis before we begin.
                self._add(services.control_worker(self.session))
            hello = self._look(ctx, self._keep_lease)
            self._epoch = self._begin(ctx, hello)
            self._scans = self._only_scans()
            if self._scans or "agent" not in self.options.without:  # one that runs already has said how
                self.place.set_detector("scan" if self._scans else "fanotify")
            self._use_changelog(ctx)
            self._start(found)
            return self._watch(ctx, Status(ctx, began))
        except SteppedBack:
            self._finished = True  # whatever is under way is refused by now
            leave(self.place)  # what the other node applies will not be wanted here
            raise
        finally:
            self._stop(ctx, idle=self._finished or not self._started)
            self._finished = False

    def _look(self, ctx: Context, turn: Callable[[], object]) -> dict[str, Any]:
        """What the secondary says of itself; ``turn`` is called meanwhile. Raises SeamarkError."""
        look, self._first_look = self._first_look, None
        look = look or look_at_secondary(self.place, self.session)
        hello = check_secondary(self.session, look, self.opening.until, turn)
        check_not_emptied(self.session, hello)
        if self.session.adopt and hello["index"] == "new":
            ctx.progress.forget_secondary()
        _say_what_cannot_be_kept(self.session, hello)
        return hello

    def _only_scans(self) -> bool:
        """Whether nothing is recorded: nobody wants it, or others may write where no recorder of this host sees it."""
        session = self.session
        if session.gluster is not None:
            return session.change_detector == "scan"  # its bricks record what all hosts do
        if session.change_detector == "auto" and (kind := shared_kind(session.tree)):
            log.info("%s is on %s, which other hosts may write to: scanning", session.primary, kind)
            return True
        return session.change_detector == "scan"

    def _use_changelog(self, ctx: Context) -> None:
        """Be one of those for whom the changelog of the primary is kept, or, without one, let go of it."""
        if self._scans:
            leave(self.place)
            return
        if self.session.gluster is None:
            join(self.place, self.session.primary, ctx.progress.changelog_lost)
        if self.options.monitored:
            ask_monitor(self.options.state_dir, "look")  # which starts its agent, if there is none

    def _keep_lease(self) -> None:
        if self.standby is not None:
            self.standby.keep()

    def _begin(self, ctx: Context, hello: dict[str, Any]) -> int:
        """The run's epoch; a Redis that has gone since it was checked is a TemporaryError."""
        try:
            return begin(ctx, hello, self._keep_lease)
        except redis.RedisError as error:
            raise TemporaryError(f"redis {shown(servers().redis_url)}: {error}") from None

    # ---- starting and ending

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def asked(_number: int, _frame: Any) -> None:
            self.stopping += 1

        def asked_at_once(_number: int, _frame: Any) -> None:
            self.stopping += _AT_ONCE

        wanted = dict.fromkeys((signal.SIGINT, signal.SIGTERM), asked)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1)
            wanted[signal.SIGHUP] = asked
        wanted[signal.SIGQUIT] = asked_at_once
        before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
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
        if not self._scans:
            have_recorded(session)
        send(tick_signature(session.name))
        if not self._scans:
            must = session.change_detector == "fanotify"
            patience_s = recording.PATIENCE_S if self.options.monitored else 0.0
            self._add(recording.agent_service(self.place, session, must_record=must, patience_s=patience_s))
        if self.redis is None:
            self._add(services.control_worker(session))
        # The processor is wanted for what comes first; a short run never needs these.
        self._add(services.data_worker(session), after_s=_DATA_AFTER_S)
        self._add(services.beat_service(session), after_s=_BEAT_AFTER_S)
        if self.options.flower_port is not None:
            self.supervisor.add(services.flower_service(self.options, found))

    def _add(self, service: Service, after_s: float = 0.0) -> None:
        service.apart = services.ROLES[service.name] in self.options.without
        self.supervisor.add(service, after_s)

    def _stop(self, ctx: Context, *, idle: bool) -> None:
        def keep_going() -> bool:
            self.logs.relay()
            with contextlib.suppress(SteppedBack):
                self._keep_lease()
            return self.stopping < _AT_ONCE

        self.supervisor.stop(keep_going, idle=idle)
        self.logs.relay()
        close_shared_connection(ctx.target, ctx.options)

    # ---- watching

    def _watch(self, ctx: Context, status: Status) -> int:
        looked, again = 0.0, 0
        completion = Completion(ctx, self._epoch)
        vigil = Vigil(ctx, self.supervisor, self.standby.active if self.standby is not None else None)
        while True:
            self.logs.wait(_TURN_S)
            self.logs.relay()
            self._keep_redis(ctx)
            self._keep_mount()
            self._keep_lease()
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
            if self.options.once and completion.reached():
                code = self._finish(ctx, status, completion.missed)
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
            send(tick_signature(self.session.name))

    def _keep_mount(self) -> None:
        if self.opening.mount is not None and self.opening.mount.ensure():
            log.warning("the mount of %s had ended and is made again", self.session.primary)

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
            raise SteppedBack(trouble[1]) if self.standby is not None else LockedError(trouble[1])
        if trouble is not None and trouble[0] == "primary-gone":
            raise SeamarkError(f"{trouble[1]}; nothing was deleted on the secondary")
        if trouble is not None and trouble[0] == "unmounted":
            raise unmounted(self.session)
        if self.options.once and (question := ctx.progress.held().question):
            raise SeamarkError(
                f"{question}; to agree: seamark deletions {self.session.name} allow, and run it again"
            )

    def _finish(self, ctx: Context, status: Status, missed: int) -> int:
        self._finished = True
        lines = log_failures(ctx)
        if missed:
            lines.append(f"{missed} directories were moving while they were to be looked at: run it again")
        for line in lines:
            log.error("%s", line)
        self.update(status.look(Phase.FINISHED if not lines else Phase.FAILED))
        return ExitCode.PARTIAL if lines else ExitCode.OK
