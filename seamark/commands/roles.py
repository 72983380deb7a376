"""`seamark agent` and `seamark roles`: roles of a session under a supervisor of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from seamark.commands.shared import named_session, session_argument, state_dir_option
from seamark.logs import setup_logging
from seamark.progress.display import Display

ROLES = ("agent", "control", "data", "beat")


@click.command()
@session_argument
@state_dir_option
def agent(name: str, state_dir: str) -> int:
    """Record the changes of session NAME's primary, in the foreground, until told to stop.

    For a supervisor of your own, beside 'seamark monitor --without agent'. It also records while the session is stopped.
    """
    place = named_session(state_dir, name)
    setup_logging(Display(sys.stderr), None)
    from scheduler.alone import be_agent, enter

    return be_agent(place, enter(Path(state_dir), name))


@click.command()
@session_argument
@click.argument("role", type=click.Choice(ROLES), required=False)
@state_dir_option
def roles(name: str, role: str | None, state_dir: str) -> None:
    """Print how each role of session NAME, or one, is run by a supervisor of your own.

    The monitor is then told not to: 'seamark monitor --without ROLE'. It still begins sessions, watches every role, and
    says when one of them gives no sign of life.
    """
    named_session(state_dir, name)
    from scheduler.alone import commands

    found = commands(Path(state_dir), name)
    if role is not None:
        click.echo(found[role])
        return
    for each, command in found.items():
        click.echo(f"{each}: {command}")
