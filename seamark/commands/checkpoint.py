"""`seamark checkpoint`: is everything up to some point on the secondary?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replication import checkpoints
from replication.errors import NotFoundError, TemporaryError, UsageError
from replication.private import private_dir
from replication.quantities import Duration
from replication.session import known_session
from seamark.commands.shared import Quantity, session_argument, state_dir_option
from seamark.progress import text

if TYPE_CHECKING:
    from replication.checkpoints import Checkpoint


@click.command(no_args_is_help=True)
@session_argument
@click.argument("what", metavar="now|TIME|wait|list")
@click.option(
    "--timeout",
    type=Quantity(Duration),
    metavar="D",
    help="With wait: how long, as 90, 90s, 5m, 2h or 1d. [default: for ever]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_dir_option
def checkpoint(name: str, what: str, timeout: Duration | None, as_json: bool, state_dir: str) -> None:
    """Ask of session NAME whether all that changed until now, or until TIME, is on the secondary.

    TIME is ISO 8601 (2026-11-25T12:30), local unless it names a zone. wait waits for the one asked for last,
    and ends with 5 when it was not reached in time; list shows all.
    """
    from scheduler import checkpointing

    place = known_session(Path(state_dir), name)
    if timeout is not None and what != "wait":
        raise UsageError("--timeout goes with wait")
    if what == "list":
        for found in checkpoints.read(place.progress):
            click.echo(_line(found, as_json=as_json))
    elif what == "wait":
        asked = checkpoints.read(place.progress)
        if not asked:
            raise NotFoundError(f"session {name} has no checkpoint: seamark checkpoint {name} now")
        reached = checkpointing.wait(place, asked[-1].id, timeout)
        if reached is None:
            raise TemporaryError(
                f"checkpoint {asked[-1].id} of session {name} was not reached within {timeout:g} s"
            )
        click.echo(_line(reached, as_json=as_json))
    else:
        time_ns = checkpointing.parse_time(what)
        private_dir(place.path)
        click.echo(_line(checkpointing.ask(place, time_ns), as_json=as_json))


def _line(found: Checkpoint, *, as_json: bool) -> str:
    reached = found.reached_ns / 1e9 if found.reached_ns is not None else None
    if as_json:
        return json.dumps(
            {"message_type": "checkpoint", "id": found.id, "time": found.time_ns / 1e9, "position": found.position,
             "completed": reached is not None, "completion_time": reached}
        )  # fmt: skip
    state = f"reached {text.moment(reached)}" if reached is not None else "not reached yet"
    return f"checkpoint {found.id}: {text.moment(found.time_ns / 1e9)}, {state}"
