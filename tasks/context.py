"""What a task needs of its session, opened once per process and kept.

Descriptors, database handles and ssh transports must not cross a fork: everything is keyed by the
process id, and opened when it is first asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from replication import checkpoints
from replication.changelog.store import ChangelogStore
from replication.errors import SeamarkError
from replication.joined import JoinedDir
from replication.kept import kept_settings
from replication.progress import Progress
from replication.remote.answers import SecondaryError
from replication.remote.command import close_shared_connection
from replication.remote.look import client_of, lineage_of_session, named, ssh_options
from replication.remote.pool import SecondaryPool
from replication.remote.target import Target, parse_target
from replication.secondary.filters import Filters
from replication.session import (
    Desired,
    Session,
    SessionDir,
    node_name,
    open_session,
    state_dir_of_this_process,
)
from replication.volume.directory import DirectoryVolume
from replication.volume.opening import open_volume
from replication.volume.stime import mark_name, mark_text, marked_ns, store_mark
from replication.windows import next_window, window_at, zone
from tasks import levels
from tasks.app import servers
from tasks.bandwidth import Bandwidth
from tasks.canvas import start_over_signature
from tasks.ledger import Ledger, StaleFence, connect
from tasks.link import Link
from tasks.terms import encode_terms, terms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from replication.remote.client import SecondaryClient
    from replication.remote.endpoint import SshOptions

# Above this round trip a link counts as thin: compressing costs less than sending.
_THIN_S = 0.01
_PUBLISH_EVERY_S = 30
_LIMITED_S = 0.5


log = logging.getLogger("seamark.secondary")


class Connection(NamedTuple):
    """A greeted secondary agent. ``thin``: sending takes long, so that small requests come through sooner."""

    client: SecondaryClient
    boot_id: str
    thin: bool
    compress: bool
    target: Target
    options: SshOptions


def _say_silent(name: str, words: str) -> None:
    """A worker that waits for a frozen far side can say nothing itself."""
    context(name).ledger.trouble("silent", words)


# Who tries again, and when, is told to all processes of the host (link.py).
_pool: SecondaryPool[SecondaryClient] = SecondaryPool(client_of, first_delay_s=0, silent=_say_silent)


class Held(Exception):
    """Nothing is to be sent now: a unit is given back, and submitted again until it may run."""


class Context:
    """One session, as one process sees it."""

    at_home = True  # on the primary's node; see tasks/elsewhere.py

    def __init__(self, place: SessionDir, session: Session) -> None:
        self.place = place
        self.session = session
        self.target = parse_target(session.secondary)
        self.options = ssh_options(place, session)
        self.filters = Filters(session.filters)
        levels.use(session.log)
        self._stamp = place.stamp()
        self._connecting = threading.Lock()
        self.alive: Callable[[], object] = lambda: None  # the running task's sign of life
        self._volume: DirectoryVolume | None = None
        self._epoch = -1
        self._boot_id = ""
        self._thin = False
        self._rsync = True
        self._told_lineage: list[str] = []
        self.powers: dict[str, Any] = {}  # what the secondary can keep, as its hello says
        self._limited = False
        self._limited_until = 0.0

    @property
    def fleet(self) -> str:
        """What the names of the session's data queues end in."""
        return f"{self.session.name}.{self.session.instance}"

    @property
    def volume(self) -> DirectoryVolume:
        if self._volume is None:
            self._volume = open_volume(self.session, self.session.root, self.place.changelog)
        return self._volume

    def renew_volume(self) -> None:
        """Look at it in the way that is right by now. Nothing may be under way in this process."""
        volume = self._volume
        if volume is not None and not volume.is_current():
            self._volume = None
            volume.close()

    def begin(self, epoch: int) -> None:
        """A task of this epoch is about to begin. Raises Held, StaleFence."""
        self.renew_volume()

    def holding(self) -> str | None:
        """Why nothing is to be sent at the moment: the session is paused, stopped, or outside of its schedule; else None.

        What is under way is finished, and what changes is recorded all the same. (Roles under a supervisor of their own
        live on while the session is stopped.)
        """
        state = self.place.state()
        if state is not None and state.desired in (Desired.PAUSED, Desired.STOPPED, Desired.RECORDING):
            return str(state.desired)
        schedule = self.session.schedule
        if not schedule.at:
            return None
        now = datetime.now(zone(schedule.timezone))
        if window_at(now, schedule.at, schedule.duration) is not None:
            return None
        return f"outside of its schedule until {next_window(now, schedule.at, schedule.duration).start:%a %d %b %H:%M}"

    def resting(self) -> str | None:
        """Why nothing new is to be begun: held, or all from before this window of the schedule is on the secondary."""
        held = self.holding()
        schedule = self.session.schedule
        if held or not schedule.at:
            return held
        now = datetime.now(zone(schedule.timezone))
        window = window_at(now, schedule.at, schedule.duration)
        brick = self.progress.brick()
        if window is None or not brick.complete or brick.crawl is not None:
            return None
        if brick.stime_ns / 1e9 < window.start.timestamp():
            return None
        after = next_window(now, schedule.at, schedule.duration).start
        return f"consistent; resting until {after:%a %d %b %H:%M}"

    def refresh(self) -> None:
        """Take over settings that were changed since they were read; a file that is damaged by now changes nothing."""
        stamp = self.place.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        with contextlib.suppress(SeamarkError):
            before, self.session = self.session, self.place.load()
            options, self.options = self.options, ssh_options(self.place, self.session)
            if options != self.options:
                self.drop_connection()
                if options.extra != self.options.extra:  # rsync and tar share one of the system's ssh
                    close_shared_connection(self.target, options)
            levels.use(self.session.log)
            if self.session.log.secondary != before.log.secondary:
                self.drop_connection()
            if self.session.filters != before.filters:
                self.filters = Filters(self.session.filters)
                self.drop_connection()  # the far side has to know them too

    @property
    def sync_method(self) -> str:
        """The session's, but for auto where rsync is missing here or there, or a limit holds that it cannot share."""
        if self.session.sync_method == "auto" and (not self._rsync or self.pace(0)):
            return "stream"
        return self.session.sync_method

    @cached_property
    def progress(self) -> Progress:
        return Progress(self.place.progress)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(connect(servers()), self.session.instance)

    @cached_property
    def broker(self) -> redis.Redis | None:
        """The broker, where that is a Redis."""
        if servers().are_one:
            return self.ledger.redis
        return servers().broker_client() if servers().broker_is_redis else None

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
            client = _pool.alive(self.session.name) or self._connect(epoch)
            thin = self._thin or self.pace(0)
            compress = {"auto": thin, "on": True, "off": False}[self.session.compression]
            return Connection(client, self._boot_id, thin, compress, self.target, self.options)

    def _connect(self, epoch: int) -> SecondaryClient:
        self.link.take_turn()
        try:
            client = _pool.get(self.session.name, self.target, self.options, partial(self._greet, epoch))
        except (StaleFence, SecondaryError):
            self.link.works()  # there is somebody, who refuses us
            raise
        except SeamarkError as error:
            self.link.failed(error)
            raise
        self.link.works()
        return client

    @cached_property
    def link(self) -> Link:
        return Link(self.ledger, node_name())

    @cached_property
    def bandwidth(self) -> Bandwidth:
        return Bandwidth(self)

    def pace(self, amount: int) -> bool:
        """Wait until so many bytes may be sent. Whether there is a limit at all, which is looked at twice a second."""
        now = time.monotonic()
        if now >= self._limited_until:
            self.refresh()
            self._limited = self.bandwidth.limited()
            self._limited_until = now + _LIMITED_S
        if self._limited and amount:
            self.bandwidth.spend(amount, self.alive)
        return self._limited

    def _greet(self, epoch: int, client: SecondaryClient) -> None:
        client.limit(self.pace)
        hello = client.hello(
            session=self.session.id,
            volume=self.session.root or self.session.id,
            epoch=epoch,
            adopt=self.session.adopt,
            filled=self._has_filled(),
            filters=self.session.filters,
            holder=self.session.instance,
            log=self.session.log.secondary,
            content_only=not self.at_home,
            of=named(self.session) if self.at_home else None,
            lineage=self._lineage(),
            believes_ns=self.session.believes_ns if self.session.adopt else 0,
        )
        self._told_lineage = self._lineage()
        self.powers = hello["fs"]
        began = time.monotonic()
        client.ping()
        self._thin = self.target.is_remote and time.monotonic() - began > _THIN_S
        self._epoch, self._boot_id = epoch, hello["boot_id"]
        self._rsync = bool(hello["rsync"]) and shutil.which("rsync") is not None
        self._believe(epoch, hello)

    def _lineage(self) -> list[str]:
        return lineage_of_session(self.session) if self.at_home else []

    def _has_filled(self) -> bool:
        return self.progress.has_filled()

    def _believe(self, epoch: int, hello: dict[str, Any]) -> None:
        """Note which secondary this is. Raises StaleFence when all has to begin anew for that."""
        if hello["index"] == "rebuilding":
            self.progress.expect_full_crawl()
        # What it says of the mark is true of what it holds; where it lost that with its index, the mark that we know is.
        said = marked_ns(hello["mark"]) if hello["mark"] or hello["index"] == "new" else None
        before = self.progress.brick().stime_ns
        if not self.progress.secondary_is(hello["index_id"], hello["gen"], hello["boot_id"], said):
            if (now := self.progress.brick().stime_ns) < before:
                log.warning(
                    "%s: the secondary is in an older state: the mark goes back to its own, %d, until all is compared",
                    self.session.name, now,
                )  # fmt: skip
            why = "the secondary, or its index, is not what it was: all of it is looked at again"
            start_over_signature(self.session.name, epoch, why).apply_async()
            raise StaleFence
        self.tell(epoch)

    def tell(self, epoch: int) -> None:
        """Tell workers on other hosts what they have to know. Redis may be away: they are told again soon."""
        with contextlib.suppress(StaleFence, redis.RedisError, OSError):
            self.ledger.tell(epoch, encode_terms(terms_of(self, epoch)))

    def trouble(self) -> tuple[str, str] | None:
        """Why work is being given back at the moment; None also while Redis is away."""
        try:
            return self.ledger.current_trouble()
        except redis.RedisError:
            return None

    def publish_mark(self, epoch: int, *, now: bool = False) -> None:
        """Write the mark, the same, to both roots: seldom, since it is a write to the primary, or ``now``, or where a checkpoint was reached,
        for the primary may be lost then. The settings go with it. While it is not known what the secondary holds, what it says itself stays.
        One at a time: who finds another one at it and wants more asks again (scheduler/completion.py).
        """
        untold = self.progress.look(partial(checkpoints.untold, published_ns=self.ledger.published()))
        if not self.ledger.once_in(_PUBLISH_EVERY_S, "stime") and not (now or untold):
            return
        if not self.ledger.try_lock("publish mark", _PUBLISH_EVERY_S):
            return
        try:
            if self._lineage() != self._told_lineage:  # the primary became somebody's secondary, or none
                self.drop_connection()
            brick = self.progress.brick()
            text = mark_text(brick) if brick.marked else None
            client = self.secondary(epoch).client
            # First: refused when another holder has taken over, who goes by it.
            client.call("mark", text=text, settings=kept_settings(self.session))
            if text is not None and store_mark(self.volume.mounted.root_fd, self.session.id, text):
                client.call("mark", name=mark_name(self.session.id), text=text)
            self.ledger.set_published(brick.stime_ns)
        finally:
            self.ledger.unlock("publish mark")

    def names_now(self, epoch: int, gfids: Iterable[bytes]) -> dict[bytes, list[bytes]]:
        """Where objects are: by the volume, if it can tell, else by the secondary, which follows.

        An empty list: the volume says that it is nowhere any more.
        """
        found: dict[bytes, list[bytes]] = {}
        unknown = []
        for gfid in gfids:
            try:
                paths = self.volume.paths_of(gfid)
            except OSError:
                paths = None
            if paths is None:
                unknown.append(gfid)
            else:
                found[gfid] = paths
        known = self.secondary(epoch).client.names(unknown) if unknown else {}
        return found | {gfid: paths for gfid, paths in known.items() if paths}

    def drop_connection(self) -> None:
        """Close the connection: the next task opens a new one."""
        _pool.drop(self.session.name)


_contexts: dict[tuple[int, str], Context] = {}
_lock = threading.Lock()


def context(name: str) -> Context:
    """The context of a session in this process: its own, or one that this host has joined.

    Raises SessionError for one this host does not know.
    """
    with _lock:
        key = (os.getpid(), name)
        if key not in _contexts:
            for stale in [k for k in _contexts if k[0] != os.getpid()]:
                del _contexts[stale]  # made before a fork: not ours to use
            _contexts[key] = _opened(name)
        found = _contexts[key]
    found.refresh()
    return found


def _opened(name: str) -> Context:
    place = JoinedDir(state_dir_of_this_process(), name)
    if not place.config.exists():
        return Context(*open_session(name))
    from tasks.elsewhere import Elsewhere

    return Elsewhere(place, place.load())
