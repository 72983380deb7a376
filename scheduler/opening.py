"""`seamark run`: which session is meant, whether it may run, and what can be begun at once.

Celery and its family take half a second to import. Redis comes up meanwhile, and the secondary is
asked: so nothing here imports them.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import math
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

import celeryconfig
from replication.errors import ExitCode, LockedError, SeamarkError, UsageError
from replication.private import private_dir
from replication.remote.target import parse_target
from replication.session import Desired, Session, SessionDir, SessionState, pair_id
from replication.settings import SessionConfig
from scheduler.preflight import InChild, check_primary, look_at_secondary
from scheduler.primary import present
from scheduler.redis_server import EmbeddedRedis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replication.gluster.mount import GlusterMount
    from scheduler.options import RunOptions
    from scheduler.snapshot import ProgressSnapshot

# What Celery imports by name when a worker is made.
_BY_NAME = (
    "celery.apps.worker", "celery.backends.redis", "celery.concurrency.asynpool", "celery.concurrency.prefork",
    "celery.events.dispatcher", "celery.worker.autoscale", "celery.worker.components", "celery.worker.consumer",
    "celery.worker.strategy", "celery.beat", "kombu.transport.redis", "billiard.popen_fork", "billiard.heap",
    "billiard.synchronize", "billiard.queues",
)  # fmt: skip


class Opening(NamedTuple):
    """What is on its way while the rest is imported."""

    redis: EmbeddedRedis | None
    look: InChild
    until: float  # time.monotonic() at which the run has no time left
    mount: GlusterMount | None  # of a primary that is a Gluster volume


def run(options: RunOptions, update: Callable[[ProgressSnapshot], None]) -> int:
    """Replicate until told to stop, or with ``once`` until done. Returns an ExitCode; raises SeamarkError."""
    place, session = configure(options)
    with present(session) as mount:
        session = msgspec.structs.replace(session, root=check_primary(session))
        if options.dry_run:
            from scheduler.dry_run import dry_run

            return dry_run(place, session, update, _until(options))
        with locked(place, session):
            place.save_run(session)
            with begun(options, place, session, mount) as opening:
                from scheduler.run import Run

                return Run(options, place, session, update, opening).run()


@contextlib.contextmanager
def begun(
    options: RunOptions, place: SessionDir, session: Session, mount: GlusterMount | None
) -> Iterator[Opening]:
    """Start Redis and the look at the secondary; by the time it returns everything is imported, and they are about there."""
    until = _until(options)
    with contextlib.ExitStack() as stack:
        redis = EmbeddedRedis(place.path / "redis") if options.servers is None else None
        if redis is not None:
            stack.callback(redis.stop)
            redis.start()
        look = look_at_secondary(place, session)
        stack.callback(look.abandon)
        _import_all(session)
        yield Opening(redis, look, until, mount)


def _until(options: RunOptions) -> float:
    return time.monotonic() + (options.timeout_s or math.inf)


def _import_all(session: Session) -> None:
    """Everything that any process of the run needs, once: they are forks of this one.

    What is there then is left out of garbage collection, here and in the forks. Celery collects before each fork
    of its own, which takes some hundredths of a second for what is never garbage.
    """
    gc.disable()
    for name in (*_BY_NAME, *celeryconfig.imports, "scheduler.run"):
        importlib.import_module(name)
    if parse_target(session.secondary).is_remote:
        importlib.import_module("replication.remote.ssh")
    gc.freeze()
    gc.enable()


def configure(options: RunOptions) -> tuple[SessionDir, Session]:
    """The session that these options mean: as it was stored, but for what the options say."""
    primary, secondary = os.fsdecode(options.primary), options.secondary
    digest = pair_id(primary, secondary)
    slug = "".join(c for c in os.path.basename(primary) if c.isascii() and c.isalnum()) or "root"
    place = SessionDir(Path(options.state_dir), options.name or f"{slug[:40]}-{digest[:8]}")
    if place.named_config.exists():
        raise UsageError(
            f"session {place.name} was made by 'seamark create': start it with 'seamark start {place.name}', "
            "or choose another --name"
        )
    stored = place.load() if place.run_config.exists() else None
    if stored is not None and (stored.primary, stored.secondary) != (primary, secondary):
        raise UsageError(
            f"session {stored.name} replicates {stored.primary} to {stored.secondary}; choose another --name"
        )
    before = stored if stored is not None else SessionConfig(primary=primary, secondary=secondary)
    config = SessionConfig(
        **{name: getattr(before, name) for name in SessionConfig.__struct_fields__}
        | options.settings
        | {
            "sync_method": options.sync_method, "jobs": options.jobs, "change_detector": options.change_detector,
            "ssh": msgspec.structs.replace(
                before.ssh, port=options.ssh_port, identity=options.identity,
                accept_new_host_key=options.accept_new_host_key,
            ),
        }
    )  # fmt: skip
    state = SessionState(id=digest, adopt=options.adopt, desired=Desired.STARTED)
    if stored is not None:
        state = msgspec.structs.replace(
            state, root=stored.root, instance=stored.instance, deletes_allowed_ns=stored.deletes_allowed_ns
        )
    return place, Session.of(place.name, config, state, place.mount)


def _runtime_dir() -> Path:
    """A directory of this user's own, the same for each run, where nobody else can put things first."""
    base = os.environ.get("XDG_RUNTIME_DIR") or ("/run" if os.geteuid() == 0 else "/tmp")
    path = Path(base) / ("seamark" if base != "/tmp" else f"seamark-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SeamarkError(f"{path} is not a directory of this user alone: remove it, or set XDG_RUNTIME_DIR")
    return path


@contextlib.contextmanager
def locked(place: SessionDir, session: Session) -> Iterator[None]:
    """One run for a pair on this host, whatever state directory it was given. Raises LockedError."""
    runtime = _runtime_dir()
    try:
        private_dir(place.path)
    except OSError as error:
        raise SeamarkError(
            f"cannot write in {place.path}: {error.strerror}; choose another --state-dir", ExitCode.USAGE
        ) from None
    with contextlib.ExitStack() as stack:
        for path in (place.run_lock, runtime / f"{session.id}.lock"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(
                    f"session {session.name} is being run by another process on this host (lock {path})"
                ) from None
        yield
