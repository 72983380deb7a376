"""`seamark failover`: the secondary becomes the primary."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from replication.errors import UsageError
from replication.quantities import Duration
from replication.remote.target import Target
from replication.session import SessionDir
from seamark.commands.shared import Quantity, meant_secondary, state_dir_option, way_of, way_options
from seamark.progress import text

if TYPE_CHECKING:
    from replication.remote.endpoint import SshOptions
    from scheduler.failover import Prospect


@click.command(no_args_is_help=True)
@click.argument("what", metavar="NAME|PATH|[USER@]HOST:PATH")
@click.option("--planned", is_flag=True, help="Replicate everything first: nothing is lost.")
@click.option("--to", metavar="SNAPSHOT", help="To what the secondary was then: see seamark snapshots.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also where the secondary was never complete.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be lost, and change nothing.")
@click.option(
    "--timeout",
    type=Quantity(Duration),
    metavar="D",
    help="With --planned: how long to wait for it to be complete.",
)
@click.option("--no-record", is_flag=True, help="Do not have recorded what is changed on the new primary.")
@way_options("secondary")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_dir_option
def failover(
    what: str,
    planned: bool,
    to: str | None,
    yes: bool,
    force: bool,
    dry_run: bool,
    timeout: Duration | None,
    no_record: bool,
    ssh_port: int | None,
    identity: str | None,
    accept_new_host_key: bool,
    as_json: bool,
    state_dir: str,
) -> None:
    """Promote a secondary to a primary: of session NAME, or the one at PATH on this host or another.

    Shows first what would be lost, and asks. From then on no session replicates to it, its old primary's least of
    all; what was half done is finished or rolled back, so the tree is complete in itself, and can be written to. On its own
    host what is changed there from then on is recorded, by the session of the way back, as long as a monitor runs. Run
    again after any interruption, it goes on. When the old primary is back: seamark failback.
    """
    place, target, options = meant_secondary(what, state_dir, ssh_port, identity, accept_new_host_key)
    if planned and place is None:
        raise UsageError("--planned goes with the name of a session, on the node where it runs")
    if planned and to is not None:
        raise UsageError("--planned loses nothing, and --to all that came later: give one of them")
    _run(
        place, target, options, state_dir, timeout, planned=planned, to=to, yes=yes, force=force, dry_run=dry_run,
        as_json=as_json, record=not no_record,
    )  # fmt: skip


def _run(
    place: SessionDir | None, target: Target, options: SshOptions | None, state_dir: str, timeout: Duration | None, *,
    planned: bool, yes: bool, force: bool, dry_run: bool, as_json: bool, to: str | None = None,
    record: bool = False,
) -> None:  # fmt: skip
    from scheduler import failover as turning

    session = place.load().id if place is not None else None
    with turning.secondary_of(target, options) as client:
        prospect = turning.look(client, target, session)
        if to is not None:
            prospect = turning.going_back(prospect, to)
        _show(prospect, as_json=as_json, planned=planned)
        if prospect.promoted is not None and prospect.done:
            click.echo(f"{target} is a primary already (term {prospect.term}): nothing to do", err=as_json)
            _report(target, prospect.promoted["report"], as_json=as_json, planned=planned)
            if record and not dry_run:
                _record(target, state_dir, as_json=as_json)
            return
        turning.check(prospect, force=force)
        if dry_run:
            return
        if place is not None and prospect.promoted is None:  # what was begun goes on whatever runs
            (turning.must_run if planned else turning.refuse_running)(place, state_dir)
        _ask(prospect, yes=yes, planned=planned)
    if planned and place is not None and prospect.promoted is None:
        turning.drain(place, state_dir, timeout, lambda words: click.echo(words, err=True))
    with turning.secondary_of(target, options) as client:
        prospect = turning.look(client, target, session)
        if to is not None:
            prospect = turning.going_back(prospect, to)
        report = turning.promote(client, prospect)
    _report(target, report, as_json=as_json, planned=planned)
    if record:
        _record(target, state_dir, as_json=as_json)


def turn_round(
    place: SessionDir,
    state_dir: str,
    timeout: Duration | None,
    *,
    yes: bool,
    as_json: bool,
    only_if_begun: bool = False,
) -> bool:
    """A planned failover of a session that is known. ``only_if_begun``: only say whether one was begun. Raises SeamarkError."""
    from scheduler import failover as turning

    target, options = way_of(place)
    if only_if_begun:
        with turning.secondary_of(target, options) as client:
            return turning.look(client, target, None).promoted is not None
    _run(
        place, target, options, state_dir, timeout, planned=True, yes=yes, force=False, dry_run=False, as_json=as_json
    )  # fmt: skip
    return True


def _show(prospect: Prospect, *, as_json: bool, planned: bool) -> None:
    if as_json:
        click.echo(json.dumps({"message_type": "prospect", **msgspec.to_builtins(prospect)}))
        return
    said: list[tuple[str, str]] = [
        (
            "secondary",
            f"{prospect.secondary} ({text.number(prospect.files)} files, {text.size(prospect.bytes)})",
        ),
        (
            "session",
            f"{prospect.name or '?'} ({prospect.session}), from {prospect.primary or 'an unknown primary'}",
        ),
    ]
    if prospect.mark is None:
        said.append(("mark", "none: the first crawl never ended"))
    else:
        age = text.duration(prospect.now - prospect.mark)
        said.append(("mark", f"{text.moment(prospect.mark)}, {age} ago: everything up to then is here"))
    if (told := prospect.told) is not None:
        backlog = told.backlog
        entries = "an unknown number of" if backlog.entries is None else text.number(backlog.entries)
        to_come = (
            f"{entries} names, {text.number(backlog.files)} files, {text.size(backlog.bytes)} were to come"
        )
        said.append(
            ("last heard", f"{text.moment(told.at)}: {to_come}; {text.number(told.failures)} failures")
        )
    for count, words in (
        (prospect.missing, "new files whose content had not come: they will not be here"),
        (prospect.wanted, "files whose newest content had not come: the one before is here"),
        (prospect.limbo, "objects deleted, or on their way to another name: they go back to the last one"),
        (prospect.held, "names that the primary had no more: they stay"),
    ):
        if count:
            said.append(("half done", f"{text.number(count)} {words}"))
    said += [("may be torn", text.shown(path)) for path in prospect.torn]
    if not prospect.done:
        lost = (
            "nothing: all is replicated first"
            if planned
            else f"all that came after snapshot {prospect.to}; what is there now is kept in .seamark/displaced/"
            if prospect.to is not None
            else "what was written on the primary after the mark, if anything was"
        )
        said.append(("lost", lost))
    for word, line in said:
        click.echo(f"{word:<11} {line}")


def _ask(prospect: Prospect, *, yes: bool, planned: bool) -> None:
    """Raises UsageError where nobody can be asked, click.Abort for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked: give --yes")
    if planned:
        click.echo("Stop now whatever writes to the primary.")
    click.confirm(f"Promote {prospect.secondary} to a primary?", abort=True)


def _report(target: Target, report: dict[str, Any], *, as_json: bool, planned: bool) -> None:
    if as_json:
        click.echo(json.dumps({"message_type": "promoted", "secondary": str(target), **report}))
        return
    click.echo(f"{target} is a primary now: it is complete in itself, and may be written to")
    for count, words in (
        (report["restored"], "objects went back to their last name"),
        (report["displaced"], "objects whose last name is taken are in .seamark/displaced"),
        (report["missing"], "new files never came"),
        (report["wanted"], "files are an older version"),
    ):
        if count:
            click.echo(f"  {text.number(count)} {words}")
    if report.get("others"):
        click.echo(f"  {report['others']} processes below .seamark/staging could not be ended: end them")
    for path in report["torn"]:
        click.echo(f"  may be half old and half new: {text.shown(path)}")
    where = "on its host: " if target.is_remote else ""
    when = "to have the other side follow" if planned else "when the old primary is back"
    if target.volume is not None:
        click.echo(
            f"{when}, on a node of the volume: seamark create NAME {target.volume} OLD-PRIMARY --adopt"
        )
        return
    click.echo(f"{when}, {where}seamark failback {os.fsdecode(target.path)}")
    if planned:
        click.echo("(a session of before, from there to here, does so by itself once it is started)")


def _record(target: Target, state_dir: str, *, as_json: bool) -> None:
    """Have what is changed there from now on recorded. Whatever becomes of that, the promotion is done."""
    from scheduler.way_back import NOT_RECORDED, WayBack, record_from_now

    if target.volume is not None:  # its way back is another one
        return
    path = os.fsdecode(target.path)
    if target.is_remote:
        begun = WayBack(says=f"{NOT_RECORDED}; to have it recorded, on its host: seamark failover {path}")
    else:
        begun = record_from_now(state_dir, path)
    if as_json:
        click.echo(json.dumps({"message_type": "recording", **msgspec.to_builtins(begun)}))
    else:
        click.echo(begun.says)
