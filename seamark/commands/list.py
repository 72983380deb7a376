"""`seamark list`: the sessions of this host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from replication.errors import SeamarkError
from replication.session import SessionDir, session_names
from seamark.commands.shared import state_dir_option


@click.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_dir_option
def list_sessions(as_json: bool, state_dir: str) -> None:
    """List the sessions of this host, with what is wanted of them."""
    rows = [_row(SessionDir(Path(state_dir), name)) for name in session_names(Path(state_dir))]
    for row in rows:
        if as_json:
            click.echo(json.dumps({"message_type": "session", **row}))
        else:
            click.echo(f"{row['name']:<20} {row['desired']:<8} {row['primary']} → {row['secondary']}")
    if not rows and not as_json:
        click.echo("no sessions", err=True)


def _row(place: SessionDir) -> dict[str, Any]:
    row = {"name": place.name, "desired": "?", "primary": "?", "secondary": "?", "error": None}
    try:
        config, state = place.load_config(), place.state()
    except SeamarkError as error:
        return {**row, "desired": "damaged", "error": error.message}
    desired = state.desired.value if state is not None else "created"
    if not place.named_config.exists():
        desired = "run"  # in the foreground, by somebody else
    return {**row, "desired": desired, "primary": config.primary, "secondary": config.secondary}
