"""`seamark snapshots`: the secondary as it was at earlier times."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replication.errors import NotFoundError, SeamarkError, UsageError
from replication.remote.answers import SecondaryError
from replication.session import known_session
from seamark.commands.shared import session_argument, state_dir_option
from seamark.progress import text

if TYPE_CHECKING:
    from replication.remote.client import SecondaryClient


@click.command(no_args_is_help=True)
@session_argument
@click.argument("verb", type=click.Choice(["list", "remove"]), default="list")
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT]...")
@click.option("--force", is_flag=True, help="With remove: also those that have to be kept longer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_dir_option
def snapshots(
    name: str, verb: str, snapshots: tuple[str, ...], force: bool, as_json: bool, state_dir: str
) -> None:
    """Show the snapshots of session NAME's secondary, the oldest first (list), or remove some.

    They are taken when a checkpoint is reached (checkpoint_snapshot, checkpoint_every), and kept by snapshot_keep.
    """
    from replication.remote.look import looking

    place = known_session(Path(state_dir), name)
    if bool(snapshots) != (verb == "remove"):
        raise UsageError("give: snapshots NAME [list], or: snapshots NAME remove SNAPSHOT...")
    if force and verb != "remove":
        raise UsageError("--force goes with remove")
    with looking(place, place.load()) as (client, hello):
        if "index_id" not in hello:
            raise NotFoundError(f"session {name} has not replicated anything yet: it has no snapshots")
        if verb == "list":
            _list(client, as_json=as_json)
        else:
            _remove(client, snapshots, force=force)


def _list(client: SecondaryClient, *, as_json: bool) -> None:
    found = client.call("snapshots").header
    items = found["items"]
    if as_json:
        for record in items:
            click.echo(json.dumps(_as_json(record)))
        return
    if not items:
        way = "" if found["method"] else " (its file system cannot have any)"
        click.echo(f"the secondary has no snapshots{way}", err=True)
        return
    click.echo(f"{'SNAPSHOT':<20} {'UP TO':<19} {'KEPT UNTIL':<19} {'FILES':>10} {'SIZE':>10}")
    for record in items:
        click.echo(_line(record))
    click.echo(f"in .seamark/snapshots/ of the secondary, {items[-1].get('method', '?')}")


def _line(record: dict[str, Any]) -> str:
    if "taken_ns" not in record:
        return f"{record['name']:<20} damaged: it has no record"
    until = record["until_ns"]
    kept = text.moment(until / 1e9) if until is not None and until > time.time_ns() else "-"
    return (
        f"{record['name']:<20} {text.moment(record['mark']['stime_ns'] / 1e9):<19} {kept:<19} "
        f"{text.number(record['files']):>10} {text.size(record['bytes']):>10}"
    )


def _as_json(record: dict[str, Any]) -> dict[str, Any]:
    """As docs/scripting.md has it: times in seconds."""
    plain: dict[str, Any] = {"message_type": "snapshot", "name": record["name"]}
    if "taken_ns" not in record:
        return {**plain, "damaged": True}
    until = record["until_ns"]
    return {
        **plain, "damaged": False, "taken": record["taken_ns"] / 1e9, "mark": record["mark"]["stime_ns"] / 1e9,
        "until": None if until is None else until / 1e9,
        **{key: record[key] for key in ("checkpoint", "method", "keep", "files", "bytes", "completed")},
    }  # fmt: skip


def _remove(client: SecondaryClient, names: tuple[str, ...], *, force: bool) -> None:
    for name in names:
        try:
            client.finish("snapshot_remove", name=name, force=force)
        except SecondaryError as error:
            if error.code == "not-found":
                raise NotFoundError(error.reason) from None
            if error.code == "kept":
                raise SeamarkError(f"{error.reason}; --force removes it all the same") from None
            raise
        click.echo(f"snapshot {name} removed")
