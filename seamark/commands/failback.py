"""`seamark failback`: what changed since a failover goes back to the old primary, and at last the roles too."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from replication.errors import ExitCode, UsageError
from replication.quantities import Duration
from replication.session import Desired, known_session, session_names
from scheduler.monitor_client import ask_monitor
from seamark.commands.shared import Quantity, state_dir_option
from seamark.progress import text

if TYPE_CHECKING:
    from replication.failback.seeding import Finding, Plan, Version
    from replication.session import SessionDir

_SHOWN = 20
_WORDS = {
    "new": "made there", "changed": "changed there", "replaced": "replaced there", "removed": "removed there",
    "renamed": "renamed there", "linked": "linked there", "attributes": "attributes changed there",
}  # fmt: skip


@click.command(no_args_is_help=True)
@click.argument("what", metavar="NAME|PATH")
@click.option("--to", "to", metavar="[USER@]HOST:PATH", help="The old primary, where it is not where it was.")
@click.option("--name", metavar="NAME", help="Of the session that replicates back.")
@click.option(
    "--switch", is_flag=True, help="Turn the roles round again: replicate all, and promote the old primary."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-n", "--dry-run", is_flag=True, help="Show the plan, and change nothing on the old primary.")
@click.option(
    "--timeout",
    type=Quantity(Duration),
    metavar="D",
    help="With --switch: how long to wait for it to be complete.",
)
@click.option(
    "--ssh-port", type=click.IntRange(1, 65535), metavar="N", help="Port of the old primary's sshd."
)
@click.option("--identity", type=click.Path(path_type=str), metavar="FILE", help="Private key for ssh.")
@click.option("--accept-new-host-key", is_flag=True, help="Pin the key of a host that is not known yet.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_dir_option
def failback(
    what: str,
    to: str | None,
    name: str | None,
    switch: bool,
    yes: bool,
    dry_run: bool,
    timeout: Duration | None,
    ssh_port: int | None,
    identity: str | None,
    accept_new_host_key: bool,
    as_json: bool,
    state_dir: str,
) -> None:
    """Replicate back to the old primary what changed on PATH since it was promoted, and go on following.

    Shows the plan first, and asks: what goes back, what the old primary wrote that never came here, and what changed on both
    sides since. None of the old primary's own is destroyed: it goes to .seamark/displaced there. With --switch the old
    primary becomes the primary again, when everything is there. Run again after any interruption, it goes on.
    """
    from replication.settings import SshSettings
    from scheduler import failback as turning

    place = _place(
        what,
        to,
        name,
        state_dir,
        SshSettings(
            port=ssh_port,
            identity=identity and os.path.abspath(identity),
            accept_new_host_key=accept_new_host_key,
        ),
    )
    if switch:
        from seamark.commands.failover import turn_round

        if not turning.follows(place, place.load()):
            raise UsageError(
                f"the old primary does not follow yet: seamark failback {place.name}, without --switch"
            )
        turn_round(place, state_dir, timeout, yes=yes, as_json=as_json)
        return
    _follow(place, state_dir, yes=yes, dry_run=dry_run, as_json=as_json)


def _place(what: str, to: str | None, name: str | None, state_dir: str, ssh: object) -> SessionDir:
    """The session that replicates back, made where there is none. Raises SeamarkError."""
    from replication.failback.promoted import promoted_root
    from replication.settings import SshSettings
    from scheduler import failback as turning

    assert isinstance(ssh, SshSettings)
    base = Path(state_dir)
    if what in session_names(base):
        place = known_session(base, what)
        primary = place.load_config().primary
        if to is not None or name is not None:
            raise UsageError(
                f"session {what} has its secondary: --to and --name go with the path of a primary"
            )
        promoted_root(primary)
        return place
    root = promoted_root(os.path.abspath(what))
    found = turning.session_on(base, root, to)
    if found is not None:
        return found
    return turning.new_session(base, root, name, to or turning.old_primary_of(root), ssh)


def _follow(place: SessionDir, state_dir: str, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    from scheduler import failback as turning
    from scheduler.opening import locked
    from scheduler.preflight import check_primary

    session = place.load()
    session = msgspec.structs.replace(session, root=check_primary(session))
    if turning.follows(place, session):
        click.echo(f"{session.secondary} follows already, by session {place.name}", err=as_json)
        _start(place, state_dir, as_json=as_json)
        return
    with locked(place, session), turning.Failback(place, session) as work:
        plan = work.plan()
        _show(session.primary, session.secondary, plan, as_json=as_json)
        if dry_run:
            raise SystemExit(ExitCode.DIFFERENT if plan.conflicts else ExitCode.OK)
        _ask(session.secondary, yes=yes)
        done = work.commit()
        place.change_state(id=session.id, root=session.root)
    if as_json:
        click.echo(
            msgspec.json.encode(
                {"message_type": "failback", "displaced": done.displaced, "report": str(work.report)}
            ).decode()
        )
    else:
        click.echo(
            f"{session.secondary} is the secondary now; {text.number(done.displaced)} objects were displaced there"
        )
        if done.counts:
            click.echo(f"all of them are listed in {work.report}")
    _start(place, state_dir, as_json=as_json)


def _start(place: SessionDir, state_dir: str, *, as_json: bool) -> None:
    place.change_state(desired=Desired.STARTED)
    answer = ask_monitor(state_dir, "look")
    click.echo(
        f"session {place.name} started; when all is there: seamark failback {place.name} --switch",
        err=as_json,
    )
    if answer is None:
        click.echo("no monitor runs here yet; it begins when one does: seamark monitor", err=True)


def _ask(secondary: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked: give --yes")
    click.confirm(f"Make {secondary} the secondary?", abort=True)


def _show(primary: str, secondary: str, plan: Plan, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"message_type": "plan", **msgspec.to_builtins(plan)}).decode())
        return
    back = plan.back
    click.echo(f"{primary} -> {secondary}")
    click.echo(
        f"to send back  {text.number(back.new)} new, {text.number(back.changed)} changed, {text.number(back.removed)} removed "
        f"({text.size(back.bytes)} at most)"
    )
    click.echo(
        f"there         {text.number(plan.agreed)} of {text.number(plan.known)} objects are as they are known"
    )
    for what, count in plan.counts.items():
        click.echo(f"              {text.number(count)} {_WORDS[what]}, and never replicated")
    click.echo(f"conflicts     {text.number(plan.conflicts)}")
    for finding in [f for f in plan.findings if f.conflict][:_SHOWN] + [
        f for f in plan.findings if not f.conflict
    ][:_SHOWN]:
        click.echo(_line(finding))


def _line(finding: Finding) -> str:
    sign = "!" if finding.conflict else " "
    path = text.shown(finding.path) + (f" (was {text.shown(finding.before)})" if finding.before else "")
    return f"  {sign} {path}: {_WORDS[finding.what]}; there {_version(finding.there)}, here {_version(finding.here)}"


def _version(version: Version | None) -> str:
    if version is None:
        return "nothing"
    if version.type == "d":
        return "a directory"
    return f"{text.size(version.size)} of {text.moment(version.mtime)}"
