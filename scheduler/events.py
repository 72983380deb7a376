"""Events: what changed of a session, told once each: in the log, and to whoever its settings name.

``EventBook`` compares what is with what was told last, which stands in the session's directory: so a restart of
anything tells nothing twice. It only notes events; another process delivers them (courier.py), since a
webhook that hangs must not hold up whoever watches.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from replication.errors import SeamarkError
from replication.session import node_name
from replication.session_file import drop_asides

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from replication.checkpoints import Checkpoint
    from replication.failures import Failure
    from replication.session import SessionDir
    from replication.snapshots import Snapshots

log = logging.getLogger("seamark.events")
_MOST_WAITING = 1000
_MOST_FAILURES = 1000  # that are told one by one, and remembered
_AT_ONCE = 20
_SAID = ("checkpoint", "differences", "snapshot")  # details that say something by themselves


class Kind(StrEnum):
    """What happened. Never changes meaning."""

    ACTIVE = "active"
    PASSIVE = "passive"
    FAULTY = "faulty"
    PAUSED = "paused"
    STOPPED = "stopped"
    CHECKPOINT_REACHED = "checkpoint-reached"
    RPO_MISSED = "rpo-missed"
    RPO_MET = "rpo-met"
    FAILURE_ADDED = "failure-added"
    FAILURE_RESOLVED = "failure-resolved"
    DELETES_HELD = "deletes-held"
    DELETES_RELEASED = "deletes-released"
    DIFFERENCES_FOUND = "differences-found"
    DIFFERENCES_GONE = "differences-gone"
    SNAPSHOT_FAILED = "snapshot-failed"
    SNAPSHOT_TAKEN = "snapshot-taken"
    DRILL_FAILED = "drill-failed"
    DRILL_PASSED = "drill-passed"


_LEVELS = {
    Kind.FAULTY: logging.ERROR, Kind.RPO_MISSED: logging.WARNING, Kind.FAILURE_ADDED: logging.WARNING,
    Kind.DELETES_HELD: logging.ERROR, Kind.DIFFERENCES_FOUND: logging.ERROR,
    Kind.SNAPSHOT_FAILED: logging.ERROR, Kind.DRILL_FAILED: logging.ERROR,
}  # fmt: skip


class Told(msgspec.Struct, kw_only=True):
    """What was told last of a session. ``upto``: the newest checkpoint that was seen; None: none yet."""

    state: str = ""
    missed: bool = False
    checkpoints: list[int] = []  # those that are waited for
    upto: int | None = None
    failures: list[str] = []
    held: bool = False
    differences: int = 0
    no_snapshot: bool = False
    drill: float = 0.0  # when the last one that was told began


class Waiting(msgspec.Struct, kw_only=True):
    """An event that is to be delivered, and to whom it was by now."""

    event: dict[str, Any]
    done: list[str] = []


def in_words(event: dict[str, Any]) -> str:
    """What happened, for a person who looks on."""
    head = f"{event['session']}: {event['event'].replace('-', ' ')}"
    if event.get("path"):  # and the reason names it
        head = f"{head} ({event['step']})"
    said = (f"{name} {event[name]}" for name in _SAID if event.get(name))
    lag = f"lag {event['lag_s']} s of {event['rpo_s']} s" if event.get("rpo_s") is not None else ""
    tail = event.get("reason") or lag or ", ".join(said)
    return f"{head}: {tail}" if tail else head


def spool(place: SessionDir) -> Path:
    """Where the events of a session wait for their delivery, a file each, in their order."""
    return place.path / "events"


class EventBook:
    """The events of one session."""

    def __init__(self, place: SessionDir) -> None:
        self._place = place
        self._path = place.path / "told.json"
        drop_asides(place.path, "told.*.new")
        self._stamp = -1
        self._told = Told()

    @property
    def told_state(self) -> str:
        """The state that was told last; empty: none."""
        return self._read().state

    def state(self, kind: Kind, reason: str = "") -> None:
        """What the session is now: active, passive, faulty, paused or stopped."""
        told = self._read()
        if told.state != kind:
            told.state = kind.value
            self._tell(kind, reason=reason)
            self._keep()

    def lag(self, lag_s: float | None, rpo_s: int | None) -> None:
        """How far it is behind, and how far it may be."""
        told = self._read()
        if lag_s is None and rpo_s is not None:
            return  # not known
        missed = rpo_s is not None and lag_s is not None and lag_s > rpo_s
        if missed != told.missed:
            told.missed = missed
            self._tell(Kind.RPO_MISSED if missed else Kind.RPO_MET, lag_s=lag_s, rpo_s=rpo_s)
            self._keep()

    def checkpoints(self, found: Iterable[Checkpoint]) -> None:
        """All checkpoints: those that were not reached before, and are now, are told."""
        told = self._read()
        found = list(found)
        newest = max((each.id for each in found), default=0)
        upto = newest if told.upto is None else told.upto
        for each in found:
            if each.reached_ns is not None and (each.id in told.checkpoints or each.id > upto):
                self._tell(
                    Kind.CHECKPOINT_REACHED, checkpoint=each.id, checkpoint_time=each.time_ns / 1e9,
                    completion_time=each.reached_ns / 1e9,
                )  # fmt: skip
        waiting = [each.id for each in found if each.reached_ns is None]
        if (waiting, newest) != (told.checkpoints, told.upto):
            told.checkpoints, told.upto = waiting, newest
            self._keep()

    def differences(self, left: int) -> None:
        """How many names of the secondary are known to differ, by comparisons of the two ends."""
        told = self._read()
        if left != told.differences:
            self._tell(Kind.DIFFERENCES_FOUND if left else Kind.DIFFERENCES_GONE, differences=left)
            told.differences = left
            self._keep()

    def snapshots(self, found: Snapshots | None) -> None:
        """Whether snapshots are taken: that one failed is told, and when one was taken again."""
        told = self._read()
        error = found.error if found is not None else ""
        if bool(error) != told.no_snapshot:
            if error:
                self._tell(Kind.SNAPSHOT_FAILED, reason=error)
            elif found is not None:
                self._tell(Kind.SNAPSHOT_TAKEN, snapshot=found.name, mark=found.mark_ns / 1e9)
            told.no_snapshot = bool(error)
            self._keep()

    def drill(self, report: dict[str, Any] | None) -> None:
        """The last drill: each is told once."""
        told = self._read()
        if report is not None and report["started"] != told.drill:
            kind = Kind.DRILL_PASSED if report["passed"] else Kind.DRILL_FAILED
            self._tell(
                kind, reason=report["reason"], started=report["started"], mark=report["mark"],
                check_exit_code=report["check_exit_code"],
            )  # fmt: skip
            told.drill = report["started"]
            self._keep()

    def failures(self, found: Iterable[Failure]) -> None:
        """The failure list, the oldest first. What will pass is told of when it was tried again in vain."""
        told = self._read()
        now = {
            f.key if f.of is None else f"{f.step}:{f.path}": f
            for f in list(found)[:_MOST_FAILURES]
            if f.tries > 1 or not f.will_pass
        }
        before = dict.fromkeys(told.failures)
        if now.keys() == before.keys():
            return
        added = [failure for key, failure in now.items() if key not in before]
        for failure in added[:_AT_ONCE]:
            self._tell(
                Kind.FAILURE_ADDED, step=failure.step, path=failure.path, gfid=failure.gfid, code=failure.code,
                reason=failure.error,
            )  # fmt: skip
        if len(added) > _AT_ONCE:
            self._tell(Kind.FAILURE_ADDED, reason=f"and {len(added) - _AT_ONCE} more")
        gone = [key for key in before if key not in now]
        for key in gone[:_AT_ONCE]:
            step, _, what = key.partition(":")
            self._tell(Kind.FAILURE_RESOLVED, step=step, reason=what)
        if len(gone) > _AT_ONCE:
            self._tell(Kind.FAILURE_RESOLVED, reason=f"and {len(gone) - _AT_ONCE} more")
        told.failures = list(now)
        self._keep()

    def held(self, question: str) -> None:
        """What a person is asked before deletions are carried out; empty: nothing."""
        told = self._read()
        if told.held != bool(question):
            told.held = bool(question)
            self._tell(Kind.DELETES_HELD if question else Kind.DELETES_RELEASED, reason=question)
            self._keep()

    # ---- what was told

    def _read(self) -> Told:
        """What was told last, by whichever process did."""
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                # Not msgspec's decoder: it takes no lone surrogates, which names may hold.
                self._told = msgspec.convert(json.loads(self._path.read_bytes()), Told)
                self._stamp = stamp
        except (OSError, ValueError):
            pass
        return self._told

    def _keep(self) -> None:
        aside = self._path.with_suffix(f".{os.getpid()}.new")
        try:
            aside.write_text(json.dumps(msgspec.structs.asdict(self._told)), encoding="ascii")
            aside.replace(self._path)
            self._stamp = self._path.stat().st_mtime_ns
        except OSError as error:
            log.warning("%s: what was told cannot be kept: %s", self._place.name, error)

    def _tell(self, kind: Kind, **details: Any) -> None:
        event = {
            "message_type": "event", "id": uuid.uuid4().hex, "time": round(time.time(), 3), "event": kind.value,
            "session": self._place.name, "node": node_name(), **details,
        }  # fmt: skip
        # ASCII only: names that are not UTF-8 are lone surrogates here
        level = _LEVELS.get(kind, logging.INFO)
        log.log(level, "event %s", json.dumps(event), extra={"words": in_words(event)})
        try:
            events = self._place.load_config().events
            if events.webhook or events.command:
                self._spool(event)
        except (OSError, SeamarkError) as error:
            log.warning("%s: an event cannot be kept for delivery: %s", self._place.name, error)

    def _spool(self, event: dict[str, Any]) -> None:
        directory = spool(self._place)
        directory.mkdir(mode=0o700, exist_ok=True)
        waiting = sorted(directory.glob("*.json"))
        for path in waiting[: max(0, len(waiting) - _MOST_WAITING + 1)]:
            log.warning(
                "%s: more than %d events wait: the oldest is dropped", self._place.name, _MOST_WAITING
            )
            path.unlink(missing_ok=True)
        path = directory / f"{time.time_ns():020d}.json"
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps({"event": event, "done": []}), encoding="ascii")
        aside.replace(path)
