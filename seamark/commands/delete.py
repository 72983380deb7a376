"""`seamark delete`: forget a session. Its data stays, on both sides."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replication.changelog import quiet
from replication.errors import LockedError, SeamarkError, UsageError
from replication.private import remove_tree
from replication.session import Desired, SessionDir, SessionState, known_session
from replication.sharing import consumers, leave, remove_unused, unused_volumes, volume_of
from replication.volume.stime import forget_mark
from scheduler.monitor_client import ask_monitor
from seamark.commands.shared import session_argument, state_dir_option
from seamark.progress import text

if TYPE_CHECKING:
    from collections.abc import Iterator

_AGENT_S = _SESSION_S = 10.0  # so long may an agent, or a session, take to end
_STEP_S = 0.1


@click.command(no_args_is_help=True)
@session_argument
@click.option("--keep-key", is_flag=True, help="Leave the session's own keys where they are (see push-pem).")
@click.option("--reset-sync-time", is_flag=True, help="Take the mark off the primary's root as well.")
@click.option(
    "--hand-back-to-gsyncd",
    "hand_back",
    is_flag=True,
    help="Have GlusterFS's own geo-replication go on from the mark of this session.",
)
@state_dir_option
def delete(name: str, keep_key: bool, reset_sync_time: bool, hand_back: bool, state_dir: str) -> None:
    """Delete session NAME, which has to be stopped. What was replicated stays where it is.

    Its own key, where it has one, is let in on the secondary no more.
    """
    place = known_session(Path(state_dir), name)
    state = None
    with contextlib.suppress(SeamarkError):  # a damaged session can be deleted all the same
        state = place.state()
    if (
        place.named_config.exists()
        and state is not None
        and state.desired in (Desired.STARTED, Desired.PAUSED, Desired.RECORDING)
    ):
        raise UsageError(f"session {name} is {state.desired}: stop it first (seamark stop {name})")
    with _ended(place, state_dir):
        _delete(place, state, keep_key=keep_key, reset_sync_time=reset_sync_time, hand_back=hand_back)
    click.echo(f"session {name} deleted; its data stays")


@contextlib.contextmanager
def _ended(place: SessionDir, state_dir: str) -> Iterator[None]:
    """Nobody runs it, nor begins to; it has a moment to end. Raises LockedError, SeamarkError."""
    until = time.monotonic() + _SESSION_S
    with contextlib.ExitStack() as stack:
        fd: int | None = None
        try:
            fd = os.open(place.run_lock, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, fd)
        except FileNotFoundError:
            pass  # it never ran
        except OSError as error:
            raise SeamarkError(f"cannot open {place.run_lock}: {error.strerror}") from None
        while _is_kept_alive(place.name, state_dir) or not _is_locked_by_us(fd):
            if time.monotonic() > until:
                raise LockedError(f"session {place.name} runs, or is still ending; try again in a moment")
            time.sleep(_STEP_S)
        yield


def _is_kept_alive(name: str, state_dir: str) -> bool:
    told = ask_monitor(state_dir, "status") or {}
    return name in told.get("sessions", {}) or name in told.get("ending", [])


def _is_locked_by_us(fd: int | None) -> bool:
    try:
        if fd is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _delete(
    place: SessionDir, state: SessionState | None, *, keep_key: bool, reset_sync_time: bool, hand_back: bool
) -> None:
    if hand_back:
        _hand_back(place)
    if place.key.exists() and not keep_key:
        _revoke(place, state)
    if place.nodes_key.exists() and not keep_key:
        _revoke_from_nodes(place)
    if reset_sync_time:
        _forget_mark(place)
    volume = volume_of(place)
    _forget_on_servers(place)
    try:
        place.named_config.unlink(missing_ok=True)
        if volume is None:
            quiet.forget(place.changelog)  # of a session that was never started since it might share one
        leave(place)
        for unused in {*unused_volumes(place.path.parent.parent), *([volume] if volume is not None else [])}:
            _forget_changelog(unused)
        if place.mount.parent.exists():
            remove_tree(place.mount.parent)
        # Its directory last: as long as there is anything, whoever was killed can delete it again.
        if place.path.exists():
            remove_tree(place.path)
    except OSError as error:
        raise SeamarkError(f"cannot remove {error.filename}: {error.strerror}") from None


def _hand_back(place: SessionDir) -> None:
    """Raises SeamarkError, and then nothing was deleted."""
    from scheduler.takeover import hand_back

    mark_ns, bricks = hand_back(place, place.load())
    said = f"gsyncd goes on from {text.moment(mark_ns / 1e9)}: its stime is on {', '.join(map(str, bricks))}"
    click.echo(said)


def _forget_changelog(volume: Path) -> None:
    """The changelog goes with the last session that uses it: its agent has a moment to end. Raises OSError."""
    until = time.monotonic() + _AGENT_S
    while not consumers(volume):
        if remove_unused(volume):
            return
        if time.monotonic() > until:
            click.echo(f"an agent still records in {volume}: the next deletion there removes it", err=True)
            return
        time.sleep(0.2)


def _revoke(place: SessionDir, state: SessionState | None) -> None:
    """Take the key back. That it could not be is said, and no reason to keep the session."""
    from scheduler import keys

    try:
        keys.revoke_key(place, keys.by_own_key(place, place.load()))
        click.echo(f"the key of session {place.name} was removed from its secondary")
    except SeamarkError as error:
        id_ = state.id if state is not None else "<its id>"
        click.echo(f"{error.message}; {keys.by_hand(id_)}", err=True)


def _revoke_from_nodes(place: SessionDir) -> None:
    """As _revoke, on the other nodes of a Gluster pool."""
    from scheduler.node_keys import revoke_from_nodes

    try:
        for said in revoke_from_nodes(place, place.load()):
            click.echo(said, err=True)
    except SeamarkError as error:
        click.echo(f"its key stays on the other nodes of the pool: {error.message}", err=True)


def _forget_on_servers(place: SessionDir) -> None:
    """Remove its queues and keys from servers that are shared. What cannot be reached keeps them, which is said."""
    if not place.servers.exists():
        return
    from scheduler.forget import forget_on_servers

    try:
        forget_on_servers(place)
    except SeamarkError as error:
        click.echo(f"its queues and keys stay where they are: {error.message}", err=True)


def _forget_mark(place: SessionDir) -> None:
    """Take the mark off the primary's root. A primary that is away keeps it, which is said."""
    from scheduler.primary import present

    try:
        session = place.load()
        with present(session):
            forget_mark(session.tree, session.id)
    except SeamarkError as error:
        click.echo(f"the mark stays on the primary's root: {error.message}", err=True)
    except OSError as error:
        click.echo(f"the mark stays on the primary's root: {error.strerror}", err=True)
