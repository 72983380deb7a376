"""`seamark status`: how far behind each session is, when it will be done, and whether it is healthy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from replication.errors import ExitCode, UsageError
from seamark.commands.shared import complete_session, state_dir_option

if TYPE_CHECKING:
    from scheduler.reports import SessionReport


@click.command()
@click.argument("name", required=False, shell_complete=complete_session)
@click.option("--detail", is_flag=True, help="What is pending by kind, checkpoints, and all reasons.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--watch", is_flag=True, help="Go on showing it, until Ctrl-C.")
@click.option("--check", is_flag=True, help="End with 1 when a session that should run is not healthy.")
@state_dir_option
def status(name: str | None, detail: bool, as_json: bool, watch: bool, check: bool, state_dir: str) -> int:
    """Show the state of session NAME, or a line for each session."""
    if watch:
        if as_json or check or detail:
            raise UsageError("--watch goes with none of --json, --check, --detail")
        from seamark.watch import watch as go_on

        return go_on(state_dir, name)
    from scheduler.reports import as_json as plain
    from scheduler.reports import session_report, session_reports

    reports = session_reports(state_dir) if name is None else [session_report(state_dir, name)]
    if as_json:
        for report in reports:
            click.echo(json.dumps(plain(report)))
    else:
        _show(reports, in_full=name is not None or detail, detail=detail)
    return ExitCode.ERROR if check and any(report.healthy is False for report in reports) else ExitCode.OK


def _show(reports: list[SessionReport], *, in_full: bool, detail: bool) -> None:
    from seamark.blocks import block, heading, line

    if not reports:
        click.echo("no sessions", err=True)
    elif in_full:
        click.echo("\n\n".join("\n".join(block(report, detail=detail)) for report in reports))
    else:
        click.echo("\n".join([heading(), *(text for report in reports for text in line(report))]))
