"""`seamark start`, `stop`, `pause`, `resume`: what is wanted of a session. The monitor brings it about."""

from __future__ import annotations

import time

import click

from replication.errors import TemporaryError, UsageError
from replication.session import Desired, SessionDir, SessionState
from scheduler.monitor_client import ask_monitor
from seamark.commands.shared import named_session, session_argument, state_dir_option

_NOW_S = 60.0
_RUNNING = (Desired.STARTED, Desired.PAUSED)


@click.command(no_args_is_help=True)
@session_argument
@click.option(
    "--adopt",
    is_flag=True,
    help="The primary, or the secondary, is another by now: compare all, keep what is right.",
)
@state_dir_option
def start(name: str, adopt: bool, state_dir: str) -> None:
    """Start session NAME: it runs from now on, also after a reboot, whenever a monitor runs.

    One that a failover left for the way back records again; seamark failback starts it.
    """
    place, state = _look(state_dir, name)
    place.load_config()  # what cannot be read is said now, and not by a monitor later
    if state is not None and _waits(state):
        _record(place, state, state_dir, adopt=adopt)
        return
    if adopt:
        state = place.change_state(adopt=True)  # until that comparison is complete
        click.echo(f"session {name} takes over what is there now")
    if state is not None and state.desired in _RUNNING:
        if not adopt:
            click.echo(f"session {name} is {state.desired} already")
        return
    _want(place, state_dir, Desired.STARTED)


@click.command(no_args_is_help=True)
@session_argument
@click.option(
    "--now", is_flag=True, help="Do not wait for what is under way: it is done again after the next start."
)
@state_dir_option
def stop(name: str, now: bool, state_dir: str) -> None:
    """Stop session NAME: what is under way is finished or given back.

    Nothing is recorded any more, unless another session of the same primary runs.
    """
    if not (now and _is_ending(state_dir, name)):
        place, state = _look(state_dir, name)
        if state is None or state.desired is not Desired.RECORDING:
            place, _ = _running(state_dir, name)
        _want(place, state_dir, Desired.STOPPED)
    if now:
        ask_monitor(state_dir, "hurry", name=name)
        until = time.monotonic() + _NOW_S
        while _is_ending(state_dir, name):
            if time.monotonic() > until:
                raise TemporaryError(f"session {name} has not ended within {_NOW_S:.0f} s")
            time.sleep(0.1)
        click.echo("nothing of it runs any more")


@click.command(no_args_is_help=True)
@session_argument
@state_dir_option
def pause(name: str, state_dir: str) -> None:
    """Pause session NAME: changes are recorded, but nothing new is sent until it is resumed."""
    place, _ = _running(state_dir, name)
    _want(place, state_dir, Desired.PAUSED)


@click.command(no_args_is_help=True)
@session_argument
@state_dir_option
def resume(name: str, state_dir: str) -> None:
    """Resume session NAME after a pause."""
    place, state = _running(state_dir, name)
    if state.desired is not Desired.PAUSED:
        raise UsageError(f"session {name} is {state.desired}, not paused")
    _want(place, state_dir, Desired.STARTED)


def _look(state_dir: str, name: str) -> tuple[SessionDir, SessionState | None]:
    place = named_session(state_dir, name)
    return place, place.state()


def _running(state_dir: str, name: str) -> tuple[SessionDir, SessionState]:
    place, state = _look(state_dir, name)
    if state is None or state.desired not in _RUNNING:
        raise UsageError(f"session {name} is {state.desired if state else 'created'}, not started")
    return place, state


def _waits(state: SessionState) -> bool:
    """Whether it is the way back of a promoted root, and its old primary was not made its secondary yet."""
    at_rest = state.desired in (Desired.RECORDING, Desired.STOPPED)
    return at_rest and state.recording is not None and not state.recording.used


def _record(place: SessionDir, state: SessionState, state_dir: str, *, adopt: bool) -> None:
    """Go on recording. What the old primary has written on its own is for `seamark failback` alone. Raises UsageError."""
    waits_for = f"when its old primary is back: seamark failback {place.name}"
    if adopt:
        raise UsageError(f"session {place.name} would overwrite what its old primary never sent; {waits_for}")
    if state.desired is Desired.RECORDING:
        click.echo(f"session {place.name} is recording already; {waits_for}")
        return
    _want(place, state_dir, Desired.RECORDING)
    click.echo(waits_for)


def _is_ending(state_dir: str, name: str) -> bool:
    """Whether the monitor is ending the session's process."""
    return name in (ask_monitor(state_dir, "status") or {}).get("ending", ())


_SAID = {
    Desired.STARTED: "started", Desired.PAUSED: "paused", Desired.STOPPED: "stopped", Desired.RECORDING: "records again",
}  # fmt: skip


def _want(place: SessionDir, state_dir: str, desired: Desired) -> None:
    place.change_state(desired=desired)
    answer = ask_monitor(state_dir, "look")
    click.echo(f"session {place.name} {_SAID[desired]}")
    if answer is None and desired in (Desired.STARTED, Desired.RECORDING):
        click.echo("no monitor runs here yet; it begins when one does: seamark monitor", err=True)
