"""`seamark drill`: would a failover work?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replication.errors import SeamarkError, UsageError
from replication.quantities import Duration
from replication.session import known_session
from replication.setting_tables import LONGEST_CHECK
from seamark.commands.shared import Quantity, session_argument, state_dir_option

if TYPE_CHECKING:
    from scheduler.drilling import Wanted

_METHODS = ("auto", "btrfs", "reflink", "overlay", "copy")


@click.command(no_args_is_help=True)
@session_argument
@click.option(
    "--check",
    metavar="COMMAND",
    help="Shell command that is run in the view, on the secondary's host; it passes if it ends with 0. [default: drill.check]",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    help="How the view is made; copy copies everything. [default: drill.method]",
)
@click.option(
    "--timeout",
    type=Quantity(Duration, above_zero=True),
    metavar="D",
    help="How long the check may take, as 90s, 5m or 2h. [default: drill.timeout]",
)
@click.option("--snapshot", metavar="SNAPSHOT", help="Try this one, and not the secondary as it is now.")
@click.option("--keep", is_flag=True, help="Leave the view there afterwards, for people.")
@click.option("--discard", is_flag=True, help="Throw away the views that were kept, and do nothing else.")
@click.option("--report", metavar="FILE|-", help="Write the report to a file as well.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
@state_dir_option
def drill(name: str, discard: bool, report: str | None, as_json: bool, state_dir: str, **words: Any) -> int:
    """Try a failover of session NAME without one: in a writable view of its secondary, complete in itself.

    The view is made, checked by a command of yours (which finds it in $SEAMARK_DRILL_PATH, and as its directory), and
    thrown away. Neither the secondary nor the session is touched. Ends with 1 when the drill failed.
    """
    from scheduler import drilling
    from seamark.drill_view import as_text

    timeout = words["timeout"]
    if timeout is not None and timeout > LONGEST_CHECK:
        raise UsageError("--timeout: 7d at most")

    place = known_session(Path(state_dir), name)
    session = place.load()
    if discard:
        if report or as_json or any(words.values()):
            raise UsageError("--discard goes alone")
        gone = drilling.discard(place, session)
        click.echo(f"{len(gone)} views thrown away")
        return 0
    if report == "-" and as_json:
        raise UsageError("only one of --json and --report can go to standard output")
    found = drilling.drill(place, session, _wanted(drilling.of_session(session), **words))
    text = as_text(found)
    if report is not None and report != "-":
        _write(report, json.dumps(found) if as_json else text)
    sys.stdout.write((json.dumps(found) if as_json else text) + "\n")
    return drilling.exit_code(found)


def _wanted(
    own: Wanted,
    *,
    check: str | None,
    method: str | None,
    timeout: Duration | None,
    keep: bool,
    snapshot: str | None,
) -> Wanted:
    return own._replace(
        check=own.check if check is None else check,
        method=method or own.method,
        timeout_s=own.timeout_s if timeout is None else float(timeout),
        keep=keep,
        own=snapshot is None and (check is None or check == own.check),
        snapshot=snapshot,
    )


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SeamarkError(f"cannot write {path}: {error.strerror}") from None
