"""`seamark failures`: what could not be replicated, and what to do about it."""

from __future__ import annotations

import getpass
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from replication.errors import NotFoundError, UsageError
from replication.progress import progress_of
from replication.session import known_session
from seamark.commands.shared import session_argument, state_dir_option
from seamark.progress import text
from seamark.progress.text import shown

if TYPE_CHECKING:
    from replication.failures import Failure
    from replication.progress import Progress
    from replication.session import SessionDir
    from replication.skips import Skip

_MOST = 1_000_000
_ACTIONS = ("list", "show", "retry", "skip")
_Row = TypeVar("_Row", "Failure", "Skip", "Failure | Skip")


@click.command(no_args_is_help=True)
@session_argument
@click.argument("action", type=click.Choice(_ACTIONS), default="list")
@click.argument("which", nargs=-1, metavar="[PATH]...")
@click.option("--all", "everything", is_flag=True, help="With skip: all that are on the list now.")
@click.option("--skipped", is_flag=True, help="With list: what was skipped, now or ever.")
@click.option("--why", default="", metavar="TEXT", help="With skip: kept with it for ever.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_dir_option
def failures(
    name: str, action: str, which: tuple[str, ...], everything: bool, skipped: bool, why: str, as_json: bool,
    state_dir: str,
) -> None:  # fmt: skip
    """What of session NAME could not be replicated, and holds the mark.

    list shows it, show says all about each PATH, retry tries it again at once (everything, where no PATH is
    given), skip does without it: it holds the mark no more, and that is recorded for ever. retry also withdraws a skip.

    PATH is absolute, or relative to the primary; the gfid and the key that show says will do as well.
    """
    _refuse(action, which, everything=everything, skipped=skipped, why=why)
    place = known_session(Path(state_dir), name)
    with progress_of(place.progress) as progress:
        found = progress.failures(_MOST) if progress is not None else []
        set_aside = progress.skips(ended=action == "list") if progress is not None else []
        known: list[Failure | Skip] = [*found, *set_aside]
        if action == "list":
            _list(set_aside if skipped else found, as_json=as_json)
        elif action == "show":
            for each in _chosen(place, known, which):
                click.echo(_json(each) if as_json else "\n".join(_block(each)))
        elif progress is None:
            raise NotFoundError(f"session {name} has never run: nothing has failed")
        elif action == "retry":
            again = _chosen(place, known, which) if which else known[: len(found)]
            _retry(place, progress, again)
        else:
            _skip(progress, _chosen(place, found, which) if which else found, why)


def _refuse(action: str, which: tuple[str, ...], *, everything: bool, skipped: bool, why: str) -> None:
    for option, goes_with, given in (
        ("--all", "skip", everything), ("--skipped", "list", skipped), ("--why", "skip", bool(why)),
    ):  # fmt: skip
        if given and action != goes_with:
            raise UsageError(f"{option} goes with {goes_with}")
    if action == "list" and which:
        raise UsageError(f"list takes no PATH: try show {which[0]}")
    if action == "show" and not which:
        raise UsageError("show needs a PATH; list has them")
    if action == "skip" and bool(which) == everything:
        raise UsageError("skip needs a PATH, several, or --all")


def _chosen(place: SessionDir, rows: list[_Row], which: tuple[str, ...]) -> list[_Row]:
    primary = place.load().tree.rstrip("/") + "/"
    chosen = []
    for word in which:
        path = os.path.normpath(word.removeprefix(primary))
        matching = [row for row in rows if row.path == path or word in (row.key, row.gfid)]
        if not matching:
            raise NotFoundError(f"nothing on the list is called {word} (seamark failures {place.name} list)")
        chosen += matching
    return chosen


def _retry(place: SessionDir, progress: Progress, rows: list[Failure | Skip]) -> None:
    from replication.session import Desired

    count = progress.hasten({row.key for row in rows})
    state = place.state()
    runs = state is not None and state.desired is Desired.STARTED
    when = "within some seconds" if runs else "when the session runs"
    click.echo(f"{count} to be tried again {when}" if count else "nothing has failed")


def _skip(progress: Progress, rows: list[Failure], why: str) -> None:
    count = progress.skip((row.key for row in rows), who=getpass.getuser(), why=why)
    click.echo(f"{count} skipped; they hold the mark no more" if count else "nothing has failed")


def _list(rows: list[Failure] | list[Skip], *, as_json: bool) -> None:
    for row in rows:
        click.echo(_json(row) if as_json else "\n".join(_lines(row)))
    if not rows and not as_json:
        click.echo("none", err=True)


def _json(row: Failure | Skip) -> str:
    """Times as seconds since the epoch, like all our JSON."""
    from replication.skips import Skip

    fields: dict[str, Any] = {"message_type": "skip" if isinstance(row, Skip) else "failure", "key": row.key}
    if not isinstance(row, Skip):
        fields["class"] = row.kind
    for field, value in asdict(row).items():
        is_time = field.endswith("_ns")
        fields[field.removesuffix("_ns")] = value / 1e9 if is_time and value is not None else value
    return json.dumps(fields)


def _lines(row: Failure | Skip) -> list[str]:
    from replication.skips import Skip

    lines = [f"{row.step:<9} {shown(row.path or row.gfid or '')}", f"{'':9} {row.code}: {shown(row.error)}"]
    if isinstance(row, Skip):
        over = f"; {row.ended} {_moment(row.ended_ns)}" if row.ended_ns is not None else ""
        because = f": {row.why}" if row.why else ""
        lines.append(f"{'':9} skipped {_moment(row.skipped_ns)} by {row.who}{because}{over}")
    else:
        lines.append(
            f"{'':9} {row.tries} {'try' if row.tries == 1 else 'tries'} since {_moment(row.first_ns)}, "
            f"the last at {_clock(row.last_ns)}, the next {_next(row.next_ns)}"
        )
    return lines


def _block(row: Failure | Skip) -> list[str]:
    from replication.skips import Skip

    pairs = [
        ("path", row.path or "–"), ("step", row.step), ("gfid", row.gfid or "–"), ("key", row.key),
        ("code", row.code), ("error", row.error), ("tries", str(row.tries)), ("changed after", _moment(row.first_ns)),
    ]  # fmt: skip
    if isinstance(row, Skip):
        pairs += [
            ("last failed", _moment(row.seen_ns)), ("skipped", f"{_moment(row.skipped_ns)} by {row.who}"),
            ("why", row.why or "–"),
        ]  # fmt: skip
    else:
        pairs += [
            ("class", row.kind),
            ("last failed", _moment(row.last_ns)),
            ("next try", _next(row.next_ns).removeprefix("at ")),
        ]
    return [f"  {what:<14} {shown(value)}" for what, value in pairs]


def _moment(at_ns: int | None) -> str:
    return text.moment(at_ns / 1e9) if at_ns else "–"


def _clock(at_ns: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_ns / 1e9))


def _next(at_ns: int) -> str:
    return f"at {_clock(at_ns)}" if at_ns > time.time_ns() else "at once"
