"""After a promotion: what is changed on the root from then on is recorded, by the session of the way back.

That session is the one that `seamark failback` would make, in a state of its own: a monitor has its volume recorded, and
replicates nothing until the old primary is back. Nothing here may ever be the reason why a promotion fails, or takes long.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call, exchange
from replication.changelog.store import ChangelogStore
from replication.errors import SeamarkError, UsageError
from replication.failback.promoted import promoted_root
from replication.progress import Progress
from replication.session import Desired, Recording
from replication.settings import SshSettings
from replication.sharing import join
from replication.volume.storage import shared_kind
from scheduler.failback import keep, new_session, old_primary_of, session_on
from scheduler.monitor_client import SOCKET, monitor_dir
from scheduler.preflight import InChild, check_primary

if TYPE_CHECKING:
    from replication.failback.promoted import PromotedRoot
    from replication.session import SessionDir, SessionState

_LONGEST_S = 8.0
_MONITOR_S = 2.0
_AGENT_S = 2.0  # it takes a fraction of a second to begin
NOT_RECORDED = "what is changed there is not recorded, so failback goes by times alone"


class WayBack(msgspec.Struct, frozen=True, kw_only=True):
    """``recording``: it is recorded from now on. ``says``: the same as a line for people."""

    session: str | None = None
    recording: bool = False
    says: str


def record_from_now(state_dir: str, path: str) -> WayBack:
    """Have what is changed on a root of this host recorded, if that can be: it was just promoted, or before."""
    why = f"{state_dir} did not answer for {_LONGEST_S:.0f} s"
    until = time.monotonic() + _LONGEST_S
    try:
        # In a child: whatever hangs there, or goes wrong, the promotion is done.
        return msgspec.convert(
            InChild(lambda: msgspec.to_builtins(_record(state_dir, path))).result(until), WayBack
        )
    except SeamarkError as error:
        if time.monotonic() < until:
            why = error.message
    except OSError as error:
        why = str(error)
    return WayBack(says=f"{NOT_RECORDED}: {why}")


def _record(state_dir: str, path: str) -> WayBack:
    """Raises SeamarkError, OSError."""
    root = promoted_root(path)
    if kind := shared_kind(path):
        raise UsageError(f"it is on {kind}, which other hosts may write to")
    found = session_on(Path(state_dir), root)
    if found is None and not root.of.get("path"):
        raise UsageError("it does not know where its primary was")
    if found is None:
        place, session = new_session(Path(state_dir), root, None, old_primary_of(root), SshSettings())
    else:
        place, session = found, found.load()
    state = place.state()
    if state is None:
        keep(place, msgspec.structs.replace(session, root=check_primary(session)), root)
        state = place.change_state()
    begun = state.recording
    if begun is not None and begun.term == root.term:
        if begun.used:
            return WayBack(session=place.name, says=f"session {place.name} replicates back already")
        if state.desired is Desired.STOPPED:
            return WayBack(
                session=place.name,
                says=f"{NOT_RECORDED}: session {place.name} is stopped: seamark start {place.name}",
            )
    _begin(place, state, root)
    return _have_recorded(state_dir, place)


def _begin(place: SessionDir, state: SessionState, root: PromotedRoot) -> None:
    """Use the changelog of the root, and note from where on it counts. May be done again."""
    join(place, root.path, lambda: _forget_positions(place))
    begun = state.recording
    if begun is None or begun.term != root.term:
        begun = Recording(
            term=root.term, position=_last_before(place.changelog, root.done_ns), since_ns=root.done_ns
        )
    at_rest = state.desired in (Desired.CREATED, Desired.STOPPED)
    place.change_state(recording=begun, desired=Desired.RECORDING if at_rest else state.desired)


def _forget_positions(place: SessionDir) -> None:
    if place.progress.exists():  # of an earlier life
        progress = Progress(place.progress)
        try:
            progress.changelog_lost()
        finally:
            progress.close()


def _last_before(changelog: Path, time_ns: int) -> int:
    """The last position, of a changelog that other sessions use already, which holds nothing from after that time; 0: none."""
    with ChangelogStore(changelog) as store:
        return max((info.number for info in store.segments() if info.end_ns <= time_ns), default=0)


def _have_recorded(state_dir: str, place: SessionDir) -> WayBack:
    """Have the monitor see to it; a moment is waited for."""
    name = place.name
    try:
        exchange(monitor_dir(state_dir), SOCKET, {"op": "look"}, _MONITOR_S)
    except (OSError, ValueError):
        return WayBack(
            session=name,
            says=f"session {name} records what is changed there once a monitor runs here: seamark monitor",
        )
    until = time.monotonic() + _AGENT_S
    while time.monotonic() < until:
        try:
            agent_call(place.changelog, "status", timeout=_AGENT_S)
        except (AgentUnreachable, AgentRefused):
            time.sleep(0.05)
        else:
            return WayBack(
                session=name,
                recording=True,
                says=f"session {name} records from now on what is changed there: seamark status {name}",
            )
    return WayBack(
        session=name,
        says=f"session {name} is to record what is changed there, and has not begun yet: seamark status {name}",
    )
