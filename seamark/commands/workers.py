"""`seamark workers`: who works for the sessions of this host, and how other hosts join."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from replication.errors import UsageError
from replication.session import known_session
from seamark.commands.shared import session_argument, state_dir_option

_COLUMNS = ("WORKER", "HOST", "ROLE", "STATE", "JOBS", "DONE", "SINCE", "LAST SIGN", "SESSIONS")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: docs/scripting.md.")
@state_dir_option
@click.pass_context
def workers(ctx: click.Context, as_json: bool, state_dir: str) -> None:
    """Show every worker of this host's brokers: what it does, and when it last gave a sign of life.

    A worker that gave none for 10 seconds is shown as silent: it is dead, frozen, or cut off.
    """
    if ctx.invoked_subcommand is not None:
        return
    from scheduler.workers import workers as known

    found = known(state_dir)
    if as_json:
        for each in found:
            click.echo(json.dumps({"message_type": "worker", **each}))
        return
    if not found:
        click.echo("no workers")
        return
    for line in _table([_COLUMNS, *(_row(each) for each in found)]):
        click.echo(line)
    for each in found:
        for now in each["now"]:
            click.echo(f"{each['worker']}: {now}")
        for session, why in each["rests"].items():
            click.echo(f"{each['worker']}: rests from session {session}: {why}")


@workers.command("export")
@session_argument
@state_dir_option
def export_session(name: str, state_dir: str) -> None:
    """Print the file by which another host joins session NAME. There are no secrets in it."""
    from replication.joined import export
    from scheduler.workers import servers_of

    place = known_session(Path(state_dir), name)
    session = place.load()
    if place.state() is None:
        raise UsageError(f"session {name} was never started: start it first")
    if all(servers.redis_url.startswith("redis+socket://") for servers in servers_of(state_dir)):
        click.echo(
            "seamark: the broker of this node is a Redis of its own, which other hosts cannot reach: set broker in "
            "seamark.toml, and start the monitor again",
            err=True,
        )
    click.echo(export(session, place.key), nl=False)


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(each["since"]))
    sign = f"{each['silent_s']:.0f} s ago"
    sessions = ", ".join(each["sessions"]) or "-"
    return (
        each["worker"], each["host"], each["role"], each["state"], str(each["processes"]), str(each["done"]), since,
        sign, sessions,
    )  # fmt: skip


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
