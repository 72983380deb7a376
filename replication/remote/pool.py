"""The links of this process to its secondaries: opened when first wanted, kept, watched, replaced when dead.

A forked child starts with none: it closes its copies of the descriptors and never touches its
parent's connections, on which it would only break both.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from replication.errors import SeamarkError
from replication.remote.launch import open_secondary

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.remote.endpoint import SshOptions
    from replication.remote.link import Link
    from replication.remote.target import Target

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_LOOKS = 6


class Client(Protocol):
    """What the pool needs of a client: a ping that does not wait for its answer, and an end."""

    def submit(self, op: str, /) -> object: ...
    def close(self) -> object: ...


C = TypeVar("C", bound=Client)


class _Slot(Generic[C]):
    """One secondary. ``error`` and ``not_before`` (monotonic) hold callers back after a failure."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.link: Link | None = None
        self.client: C | None = None
        self.error: SeamarkError | None = None
        self.failures = 0
        self.not_before = 0.0


class SecondaryPool(Generic[C]):
    """Clients by name. ``make_client`` wraps a fresh link. Safe for threads, and for forks."""

    def __init__(
        self,
        make_client: Callable[[Link], C],
        opener: Callable[[Target, SshOptions], Link] = open_secondary,
        first_delay_s: float = _FIRST_DELAY_S,
        silent: Callable[[str, str], object] = lambda _name, _words: None,
    ) -> None:
        """``silent`` is told every now and then of a far side that owes us an answer: its name, and a line."""
        self._make_client = make_client
        self._silent = silent
        self._opener = opener
        self._first_delay_s = first_delay_s
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot[C]] = {}
        self._stop = threading.Event()
        self._watch: threading.Thread | None = None
        self._interval_s = _LONGEST_DELAY_S
        _pools.add(self)

    def alive(self, name: str) -> C | None:
        """The client of ``name``, if it is connected."""
        with self._lock:
            slot = self._slots.get(name)
        if slot is None:
            return None
        with slot.lock:
            return slot.client if slot.link is not None and slot.link.lost is None else None

    def get(
        self,
        name: str,
        target: Target,
        options: SshOptions,
        greet: Callable[[C], object] | None = None,
        wait_s: float = 0.0,
    ) -> C:
        """The client of ``name``, connected, and greeted once for each new link.

        After a failure it is not tried again at once, but after a delay that doubles up to 30 s; a caller
        within that time waits up to ``wait_s`` for its end, or gets the same error again. Raises what
        open_secondary and ``greet`` raise.
        """
        with self._lock:
            slot = self._slots.setdefault(name, _Slot())
        with slot.lock:
            if slot.client is not None and slot.link is not None and slot.link.lost is None:
                return slot.client
            self._discard(slot)
            self._wait_for_turn(slot, wait_s)
            return self._open(slot, target, options, greet)

    def drop(self, name: str) -> None:
        """End the link of ``name``, if there is one; the next get() opens another at once."""
        with self._lock:
            slot = self._slots.pop(name, None)
        if slot is not None:
            with slot.lock:
                self._discard(slot)

    def close(self) -> None:
        """End all links. The pool can be used again."""
        with self._lock:
            names = list(self._slots)
        for name in names:
            self.drop(name)
        self._stop.set()

    def _open(
        self, slot: _Slot[C], target: Target, options: SshOptions, greet: Callable[[C], object] | None
    ) -> C:
        try:
            link = self._opener(target, options)
            slot.link, slot.client = link, self._make_client(link)
            if greet is not None:
                greet(slot.client)
        except BaseException as error:
            self._discard(slot)
            slot.failures += 1
            slot.error = error if isinstance(error, SeamarkError) else None
            delay = min(_LONGEST_DELAY_S, self._first_delay_s * 2 ** (slot.failures - 1))
            # Many workers lose a host at the same moment; they should not come back at the same moment.
            slot.not_before = time.monotonic() + delay * random.uniform(0.75, 1.25)
            raise
        slot.failures, slot.error, slot.not_before = 0, None, 0.0
        self._keep_watch(options.answer_timeout_s / 4)
        return slot.client

    def _wait_for_turn(self, slot: _Slot[C], wait_s: float) -> None:
        remaining = slot.not_before - time.monotonic()
        if remaining <= 0 or slot.error is None:
            return
        if remaining > wait_s:
            raise slot.error.with_traceback(None)
        time.sleep(remaining)

    def _discard(self, slot: _Slot[C]) -> None:
        client, link = slot.client, slot.link
        slot.client = slot.link = None
        if link is not None:
            link.close()
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()

    def _keep_watch(self, interval_s: float) -> None:
        """Start the thread that asks idle links whether they are alive; their readers notice if not.

        It looks more often than it asks: whoever waits for a silent one should hear why.
        """
        with self._lock:
            self._interval_s = min(self._interval_s, interval_s)
            if self._watch is None or not self._watch.is_alive() or self._stop.is_set():
                self._stop = threading.Event()
                self._watch = threading.Thread(
                    target=self._ping_idle, args=(self._stop,), name="secondary-pings", daemon=True
                )
                self._watch.start()

    def _ping_idle(self, stop: threading.Event) -> None:
        while not stop.wait(self._interval_s / _LOOKS):
            with self._lock:
                slots = list(self._slots.items())
            for name, slot in slots:
                client, link = slot.client, slot.link
                if client is None or link is None or link.lost is not None:
                    continue
                with contextlib.suppress(Exception):
                    if (owed := link.patience.owed_s) > self._interval_s / 2:
                        limit = link.patience.timeout_s
                        self._silent(name, f"{link.what} has not answered for {owed:.0f} of {limit:g} s")
                    elif link.idle_s >= self._interval_s:
                        client.submit("ping")

    def _after_fork_in_child(self) -> None:
        slots = list(self._slots.values())
        # The locks may have been held by threads which do not exist here.
        self._lock, self._slots = threading.Lock(), {}
        self._stop, self._watch = threading.Event(), None
        for slot in slots:
            if slot.link is not None:
                slot.link.abandon()
                # Kept for good: a finaliser of what the parent still uses must never run here.
                _abandoned.append((slot.link, slot.client))


_pools: weakref.WeakSet[SecondaryPool[Any]] = weakref.WeakSet()
_abandoned: list[object] = []


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
