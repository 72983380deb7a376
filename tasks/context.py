"""What a task needs of its session, opened once per process and kept.

Descriptors, database handles and ssh transports must not cross a fork: everything is keyed by the
process id, and opened when it is first asked for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from replication.changelog.store import ChangelogStore
from replication.errors import SeamarkError
from replication.progress import Progress
from replication.remote.client import SecondaryClient
from replication.remote.endpoint import SshOptions
from replication.remote.launch import open_secondary
from replication.remote.pool import SecondaryPool
from replication.remote.target import Target, parse_target
from replication.session import Desired, Session, SessionDir, open_session
from replication.volume.directory import DirectoryVolume
from replication.volume.stime import mark_name, mark_text, store_mark
from tasks.app import app
from tasks.canvas import start_over_signature
from tasks.ledger import Ledger, StaleFence, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.progress import Brick
    from replication.remote.link import Link

# Above this round trip a link counts as thin: compressing costs less than sending.
_THIN_S = 0.01
_PUBLISH_EVERY_S = 30


class Connection(NamedTuple):
    """A greeted secondary agent. ``thin``: compress what is sent."""

    client: SecondaryClient
    boot_id: str
    thin: bool
    target: Target
    options: SshOptions


def _wrap(link: Link) -> SecondaryClient:
    return SecondaryClient(link.reader, link.writer)  # type: ignore[arg-type]


_pool: SecondaryPool[SecondaryClient] = SecondaryPool(_wrap)


def ssh_options(place: SessionDir, session: Session, *, dry: bool = False) -> SshOptions:
    """How this session's secondary is reached. ``dry``: nothing is made here for it."""
    if not dry:
        place.ssh_run.mkdir(mode=0o700, parents=True, exist_ok=True)
    return SshOptions(
        port=session.ssh.port,
        identity=Path(session.ssh.identity) if session.ssh.identity else None,
        accept_new_host_key=session.ssh.accept_new_host_key,
        known_hosts_file=place.known_hosts,
        run_dir=None if dry else place.ssh_run,
        gated=session.ssh.identity == str(place.key),
    )


class Context:
    """One session, as one process sees it."""

    def __init__(self, place: SessionDir, session: Session, *, dry: bool = False) -> None:
        self.place = place
        self.session = session
        self.target = parse_target(session.secondary)
        self.options = ssh_options(place, session, dry=dry)
        self._dry = dry
        self._stamp = place.stamp()
        self._connecting = threading.Lock()
        self._epoch = -1
        self._boot_id = ""
        self._thin = False
        self._rsync = True

    @cached_property
    def volume(self) -> DirectoryVolume:
        return DirectoryVolume(os.fsencode(self.session.primary), self.session.root)

    def paused(self) -> bool:
        """Whether nothing new is to be begun. What changes is recorded all the same."""
        state = self.place.state()
        return state is not None and state.desired is Desired.PAUSED

    def refresh(self) -> None:
        """Take over settings that were changed since they were read; a file that is damaged by now changes nothing."""
        stamp = self.place.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        with contextlib.suppress(SeamarkError):
            self.session = self.place.load()
            self.options = ssh_options(self.place, self.session, dry=self._dry)

    @property
    def sync_method(self) -> str:
        """The session's, but for auto where rsync is missing here or there: that goes by stream."""
        if self.session.sync_method == "auto" and not self._rsync:
            return "stream"
        return self.session.sync_method

    @cached_property
    def progress(self) -> Progress:
        return Progress(self.place.progress)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(connect(app.conf.broker_url), self.session.id)

    @cached_property
    def store(self) -> ChangelogStore:
        return ChangelogStore(self.place.changelog)

    def secondary(self, epoch: int) -> Connection:
        """The connection to the secondary on behalf of ``epoch``, opened or renewed as needed.

        Raises SeamarkError when it cannot be had, StaleFence when that epoch is over.
        """
        with self._connecting:
            if epoch < self._epoch:
                raise StaleFence
            if epoch > self._epoch:
                self.drop_connection()
            greet = partial(self._greet, epoch)
            client = _pool.get(self.session.name, self.target, self.options, greet)
            return Connection(client, self._boot_id, self._thin, self.target, self.options)

    def _greet(self, epoch: int, client: SecondaryClient) -> None:
        hello = client.hello(
            session=self.session.id,
            volume=self.session.root or self.session.id,
            epoch=epoch,
            adopt=self.session.adopt,
        )
        began = time.monotonic()
        client.ping()
        self._thin = self.target.is_remote and time.monotonic() - began > _THIN_S
        self._epoch, self._boot_id = epoch, hello["boot_id"]
        self._rsync = bool(hello["rsync"]) and shutil.which("rsync") is not None
        if hello["index"] == "rebuilding":
            self.progress.expect_full_crawl()
        if not self.progress.secondary_is(hello["index_id"], hello["gen"], hello["boot_id"]):
            why = "the secondary, or its index, is not what it was: all of it is looked at again"
            start_over_signature(self.session.name, epoch, why).apply_async()
            raise StaleFence

    @contextmanager
    def looking(self, *, create: bool = False) -> Iterator[tuple[SecondaryClient, dict[str, Any]]]:
        """A client that may only look, and what the secondary says of itself.

        With ``create`` a root that is missing is made. Raises SeamarkError, SecondaryError.
        """
        link = open_secondary(self.target, self.options)
        try:
            client = _wrap(link)
            hello = client.hello(
                session=self.session.id, volume=self.session.root or self.session.id, epoch=0, adopt=self.session.adopt,
                create=create, read_only=True, dry=self._dry,
            )  # fmt: skip
            yield client, hello
        finally:
            link.close()

    def trouble(self) -> tuple[str, str] | None:
        """Why work is being given back at the moment; None also while Redis is away."""
        try:
            return self.ledger.current_trouble()
        except redis.RedisError:
            return None

    def publish_mark(self, epoch: int, brick: Brick, *, now: bool = False) -> None:
        """Write the mark to both roots: seldom, since it is a write to the primary, or ``now``.

        The same on both, so that a comparison of the two sees no difference.
        """
        if not self.ledger.once_in(_PUBLISH_EVERY_S, "stime") and not now:
            return
        text = mark_text(brick)
        if store_mark(self.volume.root_fd, self.session.id, text):
            self.secondary(epoch).client.call("mark", name=mark_name(self.session.id), text=text)

    def drop_connection(self) -> None:
        """Close the connection: the next task opens a new one."""
        _pool.drop(self.session.name)


_contexts: dict[tuple[int, str], Context] = {}
_lock = threading.Lock()


def context(name: str) -> Context:
    """The context of a session in this process. Raises SessionError for one this host does not know."""
    with _lock:
        key = (os.getpid(), name)
        if key not in _contexts:
            for stale in [k for k in _contexts if k[0] != os.getpid()]:
                del _contexts[stale]  # made before a fork: not ours to use
            _contexts[key] = Context(*open_session(name))
        found = _contexts[key]
    found.refresh()
    return found
