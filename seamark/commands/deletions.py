"""`seamark deletions`: what was deleted on the primary, and is held on the secondary until somebody agrees."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replication.session import known_session
from seamark.commands.shared import session_argument, state_dir_option
from seamark.progress import text

if TYPE_CHECKING:
    from replication.session import SessionDir

_MOST = 100_000


@click.command(no_args_is_help=True)
@session_argument
@click.argument("verb", type=click.Choice(["list", "allow"]), default="list")
@state_dir_option
def deletions(name: str, verb: str, state_dir: str) -> None:
    """Show what session NAME holds of deletions (list), or have them carried out (allow).

    They are held by max_delete, when more is gone from the primary than it allows, or by ignore_deletes. allow is
    once, for what is gone by now; what is deleted later is counted anew. Put the primary right instead, and they are
    held no more.
    """
    place = known_session(Path(state_dir), name)
    if verb == "list":
        _list(place)
        return
    place.load_config()
    place.change_state(deletes_allowed_ns=time.time_ns())
    click.echo(f"session {name}: what is gone from its primary by now may be deleted on the secondary")


def _list(place: SessionDir) -> None:
    from replication.remote.look import looking

    with looking(place, place.load()) as (client, _hello):
        found = client.call("held", limit=_MOST).header
    for path, stamp, ignored in found["items"]:
        why = "ignored" if ignored else "held"
        click.echo(
            f"{why} since {text.moment(stamp / 1e9)}: {path}".encode(errors="backslashreplace").decode()
        )
    asked = "; you are asked whether they may go: allow" if found["asked"] else ""
    click.echo(f"{found['count']} names stand on the secondary that the primary has no more{asked}")
