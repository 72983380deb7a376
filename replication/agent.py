"""The agent: the process that produces the changelog of a directory volume, on the node that has it.

One thread: it reads the kernel's events, closes a segment when something was recorded and a fraction of a
second has passed, says by ticks that time moved on, and answers on its socket.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replication.changelog import quiet
from replication.changelog.control import AgentRefused, AgentUnreachable, ControlServer, agent_call
from replication.changelog.detectors import AgentConfig, open_recorder
from replication.changelog.gather import Gather
from replication.changelog.index import SegmentInfo, State
from replication.changelog.quiescence import take_token
from replication.changelog.record import Kind
from replication.changelog.recorder import Recorder, RecorderUnavailable
from replication.changelog.segment import Place
from replication.changelog.store import ChangelogStore, NotTheWriter, StoreBusy
from replication.private import private_dir

__all__ = [
    "Agent",
    "AgentConfig",
    "AgentRefused",
    "AgentUnreachable",
    "NotTheWriter",
    "RecorderUnavailable",
    "StoreBusy",
    "agent_call",
    "run_agent",
]

log = logging.getLogger(__name__)

_READ_EVERY_S = 0.03
_IDLE_POLL_S = 0.2
_FIRST_TICK_S = 1.0
_RETRY_S = 1.0
_KEEP_RECORDS = 1_000_000  # while nothing can be written
_FIRST = 1 / 3  # of the time for which a segment stays open: one after a quiet time


def run_agent(
    config: AgentConfig,
    on_segment: Callable[[SegmentInfo], None],
    stop: threading.Event,
    *,
    ready: Callable[[str], None] = lambda _mode: None,
    on_alarm: Callable[[str], None] = log.warning,
    wake_fd: int | None = None,
) -> None:
    """Record until ``stop``. ``ready`` is called when recording is live, with "filesystem", "directories" or "changelogs"; ``on_segment`` after each position.

    Both are called from this thread, and should be quick. A tick that was extended is reported again.
    ``wake_fd``: becomes readable when ``stop`` is to be looked at (else that is done a few times a second).
    Raises RecorderUnavailable (scan instead), StoreBusy (another agent records this volume), OSError.
    """
    Agent(config, on_segment, on_alarm).run(stop, ready, wake_fd)


class Agent:
    """One recording of one volume."""

    def __init__(
        self,
        config: AgentConfig,
        on_segment: Callable[[SegmentInfo], None],
        on_alarm: Callable[[str], None] = log.warning,
    ) -> None:
        self.config = config
        self._on_segment = on_segment
        self._say_alarm = on_alarm
        self._gather = Gather()
        self._store = ChangelogStore(config.directory, max_bytes=config.max_bytes, on_alarm=self._on_alarm)
        self._close_after_ms = config.close_after_ms
        self._applied: dict[str, int] = {}  # by each consumer that has said so
        self._server: ControlServer | None = None
        self._moved = False
        self._recorder: Recorder
        self._opened_at: float | None = None  # time.monotonic() of the open segment's first event
        self._closed_at = -math.inf  # of the last one's end
        self._opened_ns = 0
        self._emptied_ns = 0  # when the queue was last seen empty
        self._complete_ns = 0  # everything that happened until then was taken in
        self._unwritten: list[Place] = []
        self._unwritten_records = 0
        self._lost = ""
        self._retry_at = 0.0
        self._last_event_ns = 0
        self._tick_at = 0.0

    def run(self, stop: threading.Event, ready: Callable[[str], None], wake_fd: int | None = None) -> None:
        private_dir(Path(self.config.directory))
        self._store.lock()  # who waits for it does not record beside us
        try:
            self._record(stop, ready, wake_fd)
        finally:
            self._store.close()

    def _record(self, stop: threading.Event, ready: Callable[[str], None], wake_fd: int | None) -> None:
        self._root_stat = os.stat(self.config.root)
        self._recorder = open_recorder(self.config, self._gather, self._gap)
        try:
            self._begin()
            with selectors.DefaultSelector() as selector:
                selector.register(self._recorder.fd, selectors.EVENT_READ)
                if wake_fd is not None:
                    selector.register(wake_fd, selectors.EVENT_READ)
                self._server = server = ControlServer(self.config.directory, selector, self._serve)
                try:
                    ready(self._recorder.mode)
                    while not stop.is_set():
                        self._step(selector)
                        if self._moved:
                            raise OSError(f"{self.config.root} is not the directory that it was")
                finally:
                    self._server = None
                    server.close()
            self._end()
        finally:
            self._recorder.close()

    # ---- start and stop

    def _begin(self) -> None:
        """Recording is live already: what changed before it is a gap, unless it is proved that nothing did."""
        resumed = self._recorder.resume()
        kept = None if resumed else quiet.kept(self.config.directory, self.config.root)
        still = resumed or (kept is not None and kept == take_token(self.config.root, probe=False))
        self._store.begin_writing()
        last = self._store.last_closed()
        self._complete_ns = time.time_ns()
        if last is None:
            self._tell(self._store.gap("started", self._complete_ns))
        elif not still:
            self._tell(self._store.gap("agent down", self._complete_ns))
        else:
            if self.config.gluster:  # what its bricks recorded meanwhile is still to be read
                self._complete_ns = last.end_ns
            self._recorder.next_segment(self._store.open_number())
        self._tick_at = time.monotonic() + _FIRST_TICK_S

    def _end(self) -> None:
        self._close_segment()
        if self._unwritten or self._lost:
            self._write_rest()
        if self._unwritten or self._lost:
            return  # what could not be written is lost; without the clean mark the next start is a gap anyway
        # The order makes the token sound: whatever happened before it was taken is in the queue by now,
        # and what happens after it changes the file system's own count.
        self._store.finish()
        if self.config.gluster:
            return  # its bricks go on recording
        token = take_token(self.config.root, probe=True)
        position = self._store.open_number()
        self._close_segment()
        if position != self._store.open_number():
            self._store.finish()
        elif token is not None:
            quiet.keep(self.config.directory, self.config.root, token)

    # ---- the loop

    def _step(self, selector: selectors.BaseSelector) -> None:
        readable = False
        for key, _ in selector.select(self._timeout()):
            if isinstance(key.data, ControlServer):
                key.data.handle(key.fileobj)
            elif key.fd == self._recorder.fd:
                readable = True
        if readable:
            self._drain()
            time.sleep(_READ_EVERY_S)  # events merge in the queue meanwhile; that halves the cost
        now = time.monotonic()
        if self._is_full() or now >= self._close_at():
            self._close_segment()
        elif now >= self._tick_at and not self._gather.count:
            self._tick()
        if (self._unwritten or self._lost) and now >= self._retry_at:
            self._write_rest()

    def _timeout(self) -> float:
        due = self._tick_at if self._opened_at is None else self._close_at()
        return max(0.0, min(_IDLE_POLL_S, due - time.monotonic()))

    def _close_at(self) -> float:
        """When the open segment is to be closed: never while nothing is in it."""
        if self._opened_at is None:
            return math.inf
        after = self._close_after_ms / 1000
        return min(self._opened_at + after, max(self._opened_at + after * _FIRST, self._closed_at + after))

    def _is_full(self) -> bool:
        return self._gather.count >= self.config.max_records

    def _drain(self) -> bool:
        """Take in what is queued. True when the queue was seen empty."""
        now_ns = time.time_ns()
        before = self._recorder.events
        emptied = self._recorder.drain(self._is_full)
        if self._recorder.events != before:
            self._last_event_ns = now_ns
        if emptied:
            self._emptied_ns = max(now_ns, self._emptied_ns)
        if self._opened_at is None and self._recorder.events != before:
            self._opened_at = time.monotonic()
            self._opened_ns = now_ns
        return emptied

    def _close_segment(self, *, whole: bool = False) -> bool:
        """Take in all that is queued, and close; more than one segment if there is that much.

        Whether everything that changed until now is recorded by then; ``whole``: it is to be.
        """
        while True:
            emptied = self._drain()
            complete = self._recorder.before_close(whole=whole)
            if self.config.gluster:  # what is compared may have changed at any time since then
                self._opened_ns = self._complete_ns
            if emptied and complete:
                self._complete_ns = max(self._recorder.seen_until(self._emptied_ns), self._complete_ns)
            self._opened_at = None
            if self._gather.count:
                self._closed_at = time.monotonic()
            self._write(self._gather.count, self._gather.take())
            if emptied:
                return complete

    def _tick(self) -> None:
        self._heed_needs()
        position = self._store.open_number()
        self._close_segment()
        every = min(_FIRST_TICK_S, self.config.tick_s) if self._recorder.uneasy else self.config.tick_s
        self._tick_at = time.monotonic() + every
        if position != self._store.open_number() or self._unwritten or self._lost:
            return
        try:
            info = self._store.tick(self._complete_ns)
        except OSError as error:
            self._on_alarm(f"the changelog cannot be written: {error}")
            return
        self._tell(info)

    # ---- writing

    def _write(self, records: int, places: list[Place]) -> None:
        self._unwritten += places
        self._unwritten_records += records
        if self._unwritten and not self._lost:
            self._write_rest()

    def _write_rest(self) -> None:
        try:
            if self._unwritten and not self._lost:
                info = self._store.add(self._unwritten, self._opened_ns, self._complete_ns)
            else:
                info = self._store.gap(self._lost or "recorder")
                self._lost = ""
        except OSError as error:
            self._cannot_write(error)
            return
        self._unwritten = []
        self._unwritten_records = 0
        self._tick_at = time.monotonic() + min(_FIRST_TICK_S, self.config.tick_s)
        self._tell(info)

    def _cannot_write(self, error: OSError) -> None:
        """A full disk, most likely. Records wait in memory; when they are too many, a gap does instead."""
        self._retry_at = time.monotonic() + _RETRY_S
        self._on_alarm(f"the changelog cannot be written, will try again: {error}")
        if self._unwritten_records > _KEEP_RECORDS:
            self._unwritten = []
            self._unwritten_records = 0
            self._lost = "limit"

    def _gap(self, reason: str) -> None:
        """The recorder lost something, here: what was recorded before it comes before the gap."""
        self._write(self._gather.count, self._gather.take())
        self._lost = reason
        self._write_rest()

    def _heed_needs(self) -> None:
        needs = self.config.needs()
        if needs is not None:
            self._close_after_ms, self._store.max_bytes = needs

    def _on_alarm(self, words: str) -> None:
        self._say_alarm(words)
        if self._server is not None:
            self._server.tell({"alarm": words})

    def _tell(self, info: SegmentInfo) -> None:
        self._recorder.next_segment(self._store.open_number())
        if self._server is not None:
            self._server.tell({"number": info.number, "state": info.state, "records": info.records})
        try:
            self._on_segment(info)
        except Exception:  # recording goes on whatever a listener does
            log.exception("on_segment failed for %s", info)

    # ---- the socket

    def _serve(self, request: dict[str, Any]) -> dict[str, Any]:
        operations = {
            "barrier": self._barrier,
            "follow": self._follow,
            "look": self._look,
            "status": self._status,
            "retain": self._retain,
            "damaged": self._damaged,
        }
        return operations[str(request["op"])](request)

    def _check_in_place(self) -> None:
        """What is mounted, or put, in the place of the root is not recorded: whoever starts us again records that."""
        try:
            self._moved = not os.path.samestat(os.stat(self.config.root), self._root_stat)
        except OSError:
            self._moved = True
        if self._moved:
            raise OSError("the primary is not the directory that it was")

    def _follow(self, _: dict[str, Any]) -> dict[str, Any]:
        self._check_in_place()
        assert self._server is not None
        self._server.follow()
        return {"mode": self._recorder.mode}

    def _barrier(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check_in_place()
        if not self._close_segment(whole=True):
            raise OSError("the bricks do not record everything at the moment")
        if self._unwritten or self._lost:
            raise OSError("the changelog cannot be written")
        last = self._store.last_closed()
        if last is None or last.state is not State.DATA or last.end_ns < self._complete_ns:
            last = self._store.tick(self._complete_ns)
            self._tell(last)
        if "explained_ns" in request:
            self._recorder.explained(int(request["explained_ns"]))
        if "since_ns" in request:
            self._recorder.look_since(None if (since := request["since_ns"]) is None else int(since))
        return {"position": last.number, "end_ns": last.end_ns}

    def _look(self, request: dict[str, Any]) -> dict[str, Any]:
        names = [os.fsencode(name) for name in request["names"]]
        if any(b"/" in name or len(name) > 255 or (not name and request["dir"]) for name in names):
            raise ValueError("not a name")
        kinds = Kind(0)
        for letter in request["kinds"]:
            kinds |= Kind[letter]
        if b"" in names:  # the root itself, which no name leads to
            names, kinds = [b""], kinds & ~Kind.E
        self._recorder.look(os.fsencode(request["dir"]), names, int(kinds))
        if self._opened_at is None:
            self._opened_at, self._opened_ns = time.monotonic(), time.time_ns()
        return {"open": self._store.open_number()}

    def _retain(self, request: dict[str, Any]) -> dict[str, Any]:
        self._heed_needs()
        upto = int(request["upto"])
        if names := self.config.consumers():
            if request.get("consumer"):
                self._applied[str(request["consumer"])] = upto
            # Who has not said anything yet may be as far behind as what is kept.
            upto = min(self._applied.get(name, 0) for name in names)
        freed = self._store.retain(upto)
        self._recorder.applied(upto)
        return {"freed": freed}

    def _damaged(self, request: dict[str, Any]) -> dict[str, Any]:
        gap = self._store.mark_damaged(int(request["number"]))
        self._tell(gap)
        return {"number": gap.number}

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        last = self._store.last_closed()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return {
            "mode": self._recorder.mode,
            "events": self._recorder.events,
            "overflows": self._recorder.overflows,
            "open_records": self._gather.count + self._unwritten_records,
            "last_event_ns": self._last_event_ns,
            "position": last.number if last else 0,
            "end_ns": last.end_ns if last else 0,
            "size": self._store.size(),
            "applied": {name: self._applied.get(name, 0) for name in self.config.consumers()},
            "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        }
