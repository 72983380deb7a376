"""`seamark resync`: one file or tree again, whatever the index says of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from replication.errors import SeamarkError, UsageError
from replication.session import Desired
from seamark.commands.shared import named_session, session_argument, state_dir_option

if TYPE_CHECKING:
    from replication.session import SessionDir


@click.command(no_args_is_help=True)
@session_argument
@click.argument("path", type=click.Path(path_type=str))
@click.option("--wait", is_flag=True, help="End when it was done.")
@state_dir_option
def resync(name: str, path: str, wait: bool, state_dir: str) -> None:
    """Compare PATH again, a file or a tree of session NAME's primary, and send what differs on the secondary.

    Content is compared by checksum, whatever times and sizes say. PATH is absolute, or relative to the primary.
    """
    from scheduler.resync import ask

    place = named_session(state_dir, name)
    session = place.load()
    primary = session.tree
    full = os.path.normpath(os.path.join(primary, path))
    if full != primary and not full.startswith(primary.rstrip("/") + "/"):
        raise UsageError(f"{path} is not in the primary of session {name} ({session.primary})")
    state = place.state()
    runs = state is not None and state.desired is Desired.STARTED
    if wait and not runs:
        raise UsageError(
            f"session {name} is {state.desired if state else 'created'}: start it, or do not --wait"
        )
    request = ask(place, b"" if full == primary else os.fsencode(os.path.relpath(full, primary)))
    if wait:
        _wait(place, request.exists)
        click.echo(f"{full} is on the secondary as it is here")
    else:
        later = "" if runs else f", when session {name} runs"
        click.echo(f"{full} is compared again{later}")


def _wait(place: SessionDir, unfinished: Callable[[], bool]) -> None:
    while unfinished():
        time.sleep(0.2)
        state = place.state()
        if state is None or state.desired is not Desired.STARTED:
            raise SeamarkError(
                f"session {place.name} was stopped or paused; what was asked for is done when it goes on"
            )
