"""`seamark snapshots`: the secondary as it was at earlier times."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from replication.errors import NotFoundError, SeamarkError, UsageError
from replication.remote.answers import SecondaryError
from seamark.commands.shared import complete_session, meant_secondary, state_dir_option, way_options
from seamark.progress import text

if TYPE_CHECKING:
    from replication.remote.client import SecondaryClient


@click.command(no_args_is_help=True)
@click.argument("what", metavar="NAME|PATH|[USER@]HOST:PATH", shell_complete=complete_session)
@click.argument("verb", type=click.Choice(["list", "remove"]), default="list")
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT]...")
@click.option("--force", is_flag=True, help="With remove: also those that have to be kept longer.")
@way_options("secondary")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_dir_option
def snapshots(
    what: str,
    verb: str,
    snapshots: tuple[str, ...],
    force: bool,
    ssh_port: int | None,
    identity: str | None,
    accept_new_host_key: bool,
    as_json: bool,
    state_dir: str,
) -> None:
    """Show the snapshots of a secondary, the oldest first (list), or remove some: of session NAME, or of the one at PATH on this
    host or another. It may have been promoted.

    They are taken when a checkpoint is reached (checkpoint_snapshot, checkpoint_every), and kept by snapshot_keep.
    """
    from scheduler.failover import secondary_of

    place, target, options = meant_secondary(what, state_dir, ssh_port, identity, accept_new_host_key)
    if bool(snapshots) != (verb == "remove"):
        raise UsageError("give: snapshots NAME [list], or: snapshots NAME remove SNAPSHOT...")
    if force and verb != "remove":
        raise UsageError("--force goes with remove")
    session = place.load().id if place is not None else None
    with secondary_of(target, options) as client:
        if verb == "list":
            _list(client.past(do="list", session=session)["items"], as_json=as_json)
        else:
            _remove(client, session, snapshots, force=force)


def _list(items: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for record in items:
            click.echo(json.dumps(_as_json(record)))
        return
    if not items:
        click.echo("the secondary has no snapshots", err=True)
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


def _remove(client: SecondaryClient, session: str | None, names: tuple[str, ...], *, force: bool) -> None:
    for name in names:
        try:
            client.past(do="remove", session=session, name=name, force=force)
        except SecondaryError as error:
            if error.code == "not-found":
                raise NotFoundError(error.reason) from None
            if error.code == "kept":
                raise SeamarkError(f"{error.reason}; --force removes it all the same") from None
            raise
        click.echo(f"snapshot {name} removed")
