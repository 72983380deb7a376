"""`seamark failback`: what changed since a failover goes back to the old primary, and at last the roles too."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from replication.errors import ExitCode, SeamarkError, UsageError
from replication.quantities import Duration
from replication.remote.target import parse_target
from replication.session import Desired, known_session, session_names
from scheduler.monitor_client import ask_monitor
from seamark.commands.shared import Quantity, state_dir_option, way_options
from seamark.progress import text

if TYPE_CHECKING:
    from replication.failback.agreement import Changed
    from replication.failback.recorded import Changes
    from replication.failback.seeding import Finding, Plan, Version
    from replication.settings import SshSettings

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
@way_options("old primary")
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

    ssh = SshSettings(
        port=ssh_port,
        identity=identity and os.path.abspath(identity),
        accept_new_host_key=accept_new_host_key,
    )
    with tempfile.TemporaryDirectory(prefix="seamark-") as scratch:
        way = _Way(Path(state_dir), what, to, name, ssh, Path(scratch))
        if switch:
            _switch(way, state_dir, timeout, yes=yes, as_json=as_json)
        else:
            _follow(way, state_dir, yes=yes, dry_run=dry_run, as_json=as_json)


class _Way:
    """Which session replicates back, and how the old primary is reached. Raises SeamarkError.

    A session that is new is written down when all was agreed to, and not before.
    """

    def __init__(
        self, base: Path, what: str, to: str | None, name: str | None, ssh: SshSettings, scratch: Path
    ) -> None:
        from replication.failback.promoted import promoted_root
        from replication.remote.look import ssh_options
        from scheduler import failback as turning

        known = what in session_names(base)
        path = known_session(base, what).load_config().primary if known else os.path.abspath(what)
        self.root = promoted_root(path)
        found = known_session(base, what) if known else turning.session_on(base, self.root)
        self._pinned = scratch / "known_hosts"
        if found is None:
            target = to or turning.old_primary_of(self.root)
            self.place, self.session = turning.new_session(base, self.root, name, target, ssh)
            pins = True
        else:
            self.place, self.session = found, found.load()
            pins = turning.only_recorded(found)
            if name not in (None, found.name) or (
                to is not None and str(parse_target(to)) != self.session.secondary and not pins
            ):
                raise UsageError(
                    f"session {found.name} replicates back to {self.session.secondary}; to go elsewhere delete it first: "
                    f"seamark delete {found.name}"
                )
            if pins:  # how it gets there was never said
                self.session = turning.by_way_of(self.session, to, ssh)
        self.access = ssh_options(self.place, self.session, dry=True)
        if pins:
            if self.place.known_hosts.exists():
                self._pinned.write_bytes(self.place.known_hosts.read_bytes())
            self.access = replace(self.access, known_hosts_file=self._pinned)
        elif ssh.port or ssh.identity:  # another way there, this once
            identity = Path(ssh.identity) if ssh.identity else self.access.identity
            self.access = replace(
                self.access,
                port=ssh.port or self.access.port,
                identity=identity,
                gated=self.access.gated and not ssh.identity,
            )

    def check(self) -> None:
        """What follows already may be somebody else than the old primary. Raises SeamarkError."""
        from scheduler import failback as turning

        if not turning.leads_back(self.place, self.root):
            raise UsageError(
                f"session {self.place.name} goes on to {self.session.secondary}, where {self.root.path} was not replicated from: "
                f"seamark failback {self.root.path}"
            )

    def keep(self) -> None:
        """Write the session down."""
        from replication import session_file
        from scheduler import failback as turning

        turning.keep(self.place, self.session, self.root)
        if self._pinned.exists():
            session_file.replace_file(self.place.known_hosts, self._pinned.read_text(encoding="utf-8"))


def _switch(way: _Way, state_dir: str, timeout: Duration | None, *, yes: bool, as_json: bool) -> None:
    from replication.failback.promoted import hand_over
    from scheduler import failback as turning
    from seamark.commands.failover import turn_round

    place = way.place
    if turning.follows(place, way.session, way.access):
        way.check()
    elif turning.only_recorded(place) or not turn_round(
        place, state_dir, timeout, yes=yes, as_json=as_json, only_if_begun=True
    ):
        raise UsageError(
            f"the old primary does not follow yet: seamark failback {place.name}, without --switch"
        )
    turn_round(place, state_dir, timeout, yes=yes, as_json=as_json)
    hand_over(way.root.path)


def _follow(way: _Way, state_dir: str, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    from scheduler import failback as turning
    from scheduler.opening import locked
    from scheduler.preflight import check_primary

    place = way.place
    session = way.session = msgspec.structs.replace(way.session, root=check_primary(way.session))
    with contextlib.ExitStack() as stack:
        try:
            if place.config.exists() and turning.follows(place, session, way.access):
                way.check()
                click.echo(f"{session.secondary} follows already, by session {place.name}", err=as_json)
                _start(way, state_dir, as_json=as_json)
                return
            work = stack.enter_context(turning.Failback(place, session, way.access))
        except SeamarkError:
            if dry_run:
                _show_here(way, as_json=as_json)
            raise
        plan = work.plan()
        _show(session.primary, session.secondary, plan, as_json=as_json)
        if dry_run:
            raise SystemExit(ExitCode.DIFFERENT if plan.conflicts else ExitCode.OK)
        _ask(session.secondary, yes=yes)
        way.keep()
        with locked(place, session):
            done = work.commit()
    if as_json:
        said = {
            "message_type": "failback",
            "displaced": done.displaced,
            "stuck": done.stuck,
            "report": str(work.report),
        }
        click.echo(json.dumps(said))
    else:
        click.echo(
            f"{session.secondary} is the secondary now; {text.number(done.displaced)} objects were displaced there"
        )
        for path, why in done.stuck:
            click.echo(f"  could not be displaced, and stays: {text.shown(path)}: {why}")
        if done.counts:
            click.echo(f"all of them are listed in {work.report}")
    _start(way, state_dir, as_json=as_json)


def _start(way: _Way, state_dir: str, *, as_json: bool) -> None:
    from scheduler.failback import taken_back

    place = way.place
    taken_back(place, way.root, desired=Desired.STARTED)
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
        click.echo(json.dumps({"message_type": "plan", **msgspec.to_builtins(plan)}))
        return
    click.echo(f"{primary} -> {secondary}")
    _show_changed(plan.back, plan.recorded)
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


def _show_here(way: _Way, *, as_json: bool) -> None:
    """What is known without the old primary. Whatever it fails at is not what is to be told."""
    from scheduler.failback import agreement_of

    with (
        contextlib.suppress(SeamarkError, OSError, sqlite3.Error),
        tempfile.TemporaryDirectory(prefix="seamark-") as scratch,
        agreement_of(way.place, way.root, Path(scratch)) as agreement,
    ):
        back, recorded = agreement.changed(), agreement.recorded
        if as_json:
            said = {"back": msgspec.to_builtins(back), "recorded": msgspec.to_builtins(recorded)}
            click.echo(json.dumps({"message_type": "changed", **said}))
        else:
            click.echo(f"{way.session.primary} -> {way.session.secondary}, which cannot be asked")
            _show_changed(back, recorded)


def _show_changed(back: Changed, recorded: Changes | None) -> None:
    click.echo(
        f"to send back  {text.number(back.new)} new, {text.number(back.changed)} changed, {text.number(back.removed)} removed "
        f"({text.size(back.bytes)} at most)"
    )
    if recorded is not None and recorded.since is not None:
        click.echo(
            f"recorded      {text.recorded(recorded.names, recorded.since, at_least=recorded.at_least)}"
        )


def _line(finding: Finding) -> str:
    sign = "!" if finding.conflict else " "
    path = text.shown(finding.path) + (f" (was {text.shown(finding.before)})" if finding.before else "")
    if finding.what == "attributes" and finding.there and finding.here:
        return f"  {sign} {path}: {_WORDS[finding.what]}; {_attributes(finding.there, finding.here)}"
    return f"  {sign} {path}: {_WORDS[finding.what]}; there {_version(finding.there)}, here {_version(finding.here)}"


def _attributes(there: Version, here: Version) -> str:
    """What of two versions is set back."""
    said = [
        f"{word} there {was}, here {now}"
        for word, was, now in (("mode", there.mode, here.mode), ("owner", there.owner, here.owner))
        if was != now and now
    ]
    ours, theirs = here.attributes or {}, there.attributes or {}
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if names and here.attributes is not None:
        said.append(f"{', '.join(map(text.shown, names))} differ")
    return "; ".join(said) or "none that is different now"


def _version(version: Version | None) -> str:
    if version is None:
        return "nothing"
    if version.type == "d":
        return "a directory"
    return f"{text.size(version.size)} of {text.moment(version.mtime)}"
