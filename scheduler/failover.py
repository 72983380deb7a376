"""Failover: the secondary becomes the primary, because the old one is gone, or (planned) because somebody wants it so.

What would be lost is known on the secondary: its mark, and what the primary said last. A planned one loses
nothing: everything is on the secondary, and nothing was written since, before it is promoted.
"""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from replication.changelog.control import SOCKET, AgentRefused, AgentUnreachable, agent_call
from replication.changelog.index import State
from replication.changelog.store import ChangelogStore, StoreBusy
from replication.errors import ExitCode, LockedError, NotFoundError, SeamarkError, TemporaryError, UsageError
from replication.remote.answers import SecondaryError
from replication.remote.launch import open_secondary
from replication.remote.look import client_of
from replication.session import Desired, node_name
from replication.volume.stime import marked_ns
from scheduler import checkpointing
from scheduler.monitor_client import ask_monitor
from scheduler.telling import Told, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replication.remote.client import SecondaryClient
    from replication.remote.endpoint import SshOptions
    from replication.remote.target import Target
    from replication.session import SessionDir

_ROUNDS = 5  # of draining, until writers are taken to be at work still
_END_S = 60.0
CODES = {
    "not-ours": ExitCode.NOT_FOUND, "not-found": ExitCode.NOT_FOUND, "owned": ExitCode.LOCKED, "promoted": ExitCode.LOCKED,
    "stale-term": ExitCode.LOCKED, "read-only": ExitCode.TEMPORARY, "no-space": ExitCode.TEMPORARY,
    "unmounted": ExitCode.TEMPORARY, "busy": ExitCode.TEMPORARY,
}  # fmt: skip


class Prospect(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a secondary that may be promoted. Times: seconds since the epoch; None: not known.

    ``missing``: files whose content had not come at all; ``wanted``: those whose newest had not; ``torn``: paths of
    files that may be half old and half new.
    """

    secondary: str
    session: str
    name: str = ""
    primary: str = ""
    term: int = 0
    promoted: dict[str, Any] | None = None
    index: str = "ok"
    mark: float | None = None
    told: Told | None = None
    now: float = 0.0  # by the secondary's clock
    files: int = 0
    bytes: int = 0
    missing: int = 0
    wanted: int = 0
    limbo: int = 0
    held: int = 0
    displaced: int = 0
    torn: tuple[str, ...] = ()
    to: str | None = None  # the snapshot that it goes back to
    snapshots: tuple[dict[str, Any], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether a first crawl ever ended: before that nobody knows what is not there."""
        return self.mark is not None and self.index == "ok"

    @property
    def done(self) -> bool:
        return bool(self.promoted and self.promoted.get("done"))


@contextmanager
def secondary_of(target: Target, options: SshOptions | None) -> Iterator[SecondaryClient]:
    """A client of an agent there that nobody greeted. Raises SeamarkError, also for what the agent refuses."""
    link = open_secondary(target, options)
    try:
        yield client_of(link)
    except SecondaryError as error:
        raise SeamarkError(f"{target}: {error}", CODES.get(error.code, ExitCode.ERROR)) from None
    finally:
        link.close()


def look(client: SecondaryClient, target: Target, session: str | None) -> Prospect:
    """What would be lost. Raises SecondaryError."""
    facts = client.promotion(do="look", session=session)
    return _prospect(target, facts)


def _prospect(target: Target, facts: dict[str, Any]) -> Prospect:
    owner = facts["owner"]
    of = owner.get("of") or {}
    mark = marked_ns(facts.get("mark"))
    return Prospect(
        secondary=str(target), session=owner["session"], name=of.get("name", ""),
        primary=f"{of['node']}:{of['path']}" if of else "", term=facts["term"], promoted=facts["promoted"],
        index=facts["index"], mark=mark / 1e9 if mark else None, told=read(facts.get("told")), now=facts["t"] / 1e9,
        files=facts.get("files", 0), bytes=facts.get("bytes", 0), missing=facts.get("missing", 0),
        wanted=facts.get("wanted", 0), limbo=facts.get("limbo", 0), held=facts.get("held", 0),
        displaced=facts.get("displaced", 0), torn=tuple(facts.get("torn", ())),
        snapshots=tuple(facts.get("snapshots", ())), to=(facts["promoted"] or {}).get("to"),
    )  # fmt: skip


def going_back(prospect: Prospect, name: str) -> Prospect:
    """The same for a promotion to a snapshot: of what is a primary already as well, in a later term, or in the place of one that
    has not ended, as long as the secondary can. Raises NotFoundError.
    """
    if prospect.promoted is not None and prospect.to == name:
        return prospect
    known = {str(record["name"]): record for record in prospect.snapshots}
    if "mark" not in known.get(name, {}):
        raise NotFoundError(
            f"{prospect.secondary} has no snapshot {name} (it has: {', '.join(known) or 'none'})"
        )
    record = known[name]
    completed = record["completed"]
    return msgspec.structs.replace(
        prospect, to=name, promoted=None if prospect.done else prospect.promoted, mark=record["mark"]["stime_ns"] / 1e9, told=None, files=record["files"], bytes=record["bytes"],
        missing=completed["missing"], wanted=completed["wanted"], torn=tuple(completed["torn"]), limbo=0, held=0, index="ok",
    )  # fmt: skip


def check(prospect: Prospect, *, force: bool) -> None:
    """Raises SeamarkError for a secondary that is not fit to be a primary."""
    if prospect.complete or force:
        return
    if prospect.index == "ok":
        why = "its first crawl never ended: not all of the primary is there"
    else:
        why = f"its index is {prospect.index}: what is not there is not known"
    raise SeamarkError(f"{prospect.secondary}: {why}; to promote what is there all the same, give --force")


def promote(client: SecondaryClient, prospect: Prospect) -> dict[str, Any]:
    """Promote it, or end what was begun; what was put right there. Raises SecondaryError."""
    begun = prospect.promoted
    term = begun["term"] if begun is not None else prospect.term + 1
    report: dict[str, Any] = client.promotion(
        do="promote", session=prospect.session, term=term, by=node_name(), to=prospect.to
    )["report"]
    return report


# ---- planned


def drain(place: SessionDir, state_dir: str, timeout_s: float | None, say: Callable[[str], object]) -> None:
    """Until all is on the secondary, nothing was written since, and nothing of the session runs here.

    Raises TemporaryError when writers go on, or it takes too long; then the session runs on as before.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    for _ in range(_ROUNDS):
        asked = checkpointing.ask(place, None)
        say(f"waiting for checkpoint {asked.id}: everything that was written until now")
        left = None if until is None else max(0.0, until - time.monotonic())
        if checkpointing.wait(place, asked.id, left) is None:
            raise TemporaryError(
                f"session {place.name}: not everything was on the secondary within {timeout_s:g} s; nothing was changed"
            )
        if not _written_since(place, asked.position):
            end(place, state_dir)
            if not _written_since(place, asked.position):
                return
            place.change_state(desired=Desired.STARTED)
            ask_monitor(state_dir, "look")
            _until_it_runs(place, state_dir)
        say("something was written meanwhile: once more")
    raise TemporaryError(
        f"session {place.name}: something goes on writing to the primary; stop it, or make the volume read-only, and try again. "
        "Nothing was changed"
    )


def end(place: SessionDir, state_dir: str) -> None:
    """Stop a session, and wait until nothing of it runs here. Raises TemporaryError."""
    place.change_state(desired=Desired.STOPPED)
    ask_monitor(state_dir, "look")
    until = time.monotonic() + _END_S
    while place.name in (ask_monitor(state_dir, "status") or {}).get("sessions", {}):
        if time.monotonic() > until:
            raise TemporaryError(f"session {place.name} has not ended within {_END_S:.0f} s")
        time.sleep(0.1)


def _until_it_runs(place: SessionDir, state_dir: str) -> None:
    until = time.monotonic() + _END_S
    while time.monotonic() < until:
        told = (ask_monitor(state_dir, "status") or {}).get("sessions", {}).get(place.name, {})
        if told.get("pid") and (place.changelog / SOCKET).exists():
            return
        time.sleep(0.2)


def _written_since(place: SessionDir, position: int | None) -> bool:
    """Whether the changelog has anything beyond a position. Where nothing is recorded the checkpoint has to do."""
    if position is None:
        return False
    if place.changelog.is_dir():
        # The agent may go on: another session of this primary runs. Or it ends, and writes what it has.
        until = time.monotonic() + _END_S
        while not _all_is_written(place) and time.monotonic() < until:
            time.sleep(0.1)
    return any(info.state is not State.TICK for info in ChangelogStore(place.changelog).segments(position))


def _all_is_written(place: SessionDir) -> bool:
    """Whether what was recorded until now is in the changelog, which either an agent says or there is none any more."""
    try:
        agent_call(place.changelog, "barrier", timeout=5.0)
    except AgentUnreachable:
        with ChangelogStore(place.changelog) as store, contextlib.suppress(StoreBusy):
            store.lock()
            return True
        return False
    except AgentRefused:
        return False
    return True


def must_run(place: SessionDir, state_dir: str) -> None:
    """A planned failover is one of a session that works. Raises UsageError, NotFoundError."""
    state = place.state()
    if state is None or state.desired is not Desired.STARTED:
        raise UsageError(
            f"session {place.name} is {state.desired if state else 'created'}: a planned failover drains it first, so start it; "
            "or, if its primary is gone, leave --planned out"
        )
    if ask_monitor(state_dir, "status") is None:
        raise NotFoundError("no monitor runs here, which a planned failover needs: seamark monitor")


def refuse_running(place: SessionDir, _state_dir: str) -> None:
    """Promoting under a session that runs here loses what is on its way. Raises LockedError."""
    state = place.state()
    if state is not None and state.desired is Desired.STARTED and os.path.isdir(place.load_config().primary):
        raise LockedError(
            f"session {place.name} is started, and its primary is here: give --planned, which loses nothing; or stop it first"
        )
