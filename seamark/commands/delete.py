"""`seamark delete`: forget a session. Its data stays, on both sides."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import click

from replication.errors import LockedError, SeamarkError, UsageError
from replication.session import Desired, known_session
from scheduler.monitor_client import ask_monitor
from seamark.commands.shared import session_argument, state_dir_option


@click.command(no_args_is_help=True)
@session_argument
@state_dir_option
def delete(name: str, state_dir: str) -> None:
    """Delete session NAME, which has to be stopped. What was replicated stays where it is."""
    place = known_session(Path(state_dir), name)
    state = None
    with contextlib.suppress(SeamarkError):  # a damaged session can be deleted all the same
        state = place.state()
    if (
        place.named_config.exists()
        and state is not None
        and state.desired in (Desired.STARTED, Desired.PAUSED)
    ):
        raise UsageError(f"session {name} is {state.desired}: stop it first (seamark stop {name})")
    if name in (ask_monitor(state_dir, "status") or {}).get("sessions", {}):
        raise LockedError(f"session {name} is still ending; try again in a moment")
    try:
        place.named_config.unlink(missing_ok=True)
        if place.path.exists():
            shutil.rmtree(place.path)
    except OSError as error:
        raise SeamarkError(f"cannot remove {error.filename}: {error.strerror}") from None
    click.echo(f"session {name} deleted; its data stays")
