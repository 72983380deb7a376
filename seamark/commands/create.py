"""`seamark create`: a named session, after a look at everything that it needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replication import session_file, settings
from replication.errors import SeamarkError, UsageError
from replication.remote.target import parse_target
from replication.session import Session, SessionDir, SessionState, pair_id
from scheduler.checks.outcome import Outcome
from seamark.commands.push_pem import operators_access
from seamark.commands.shared import ALL, primary_of, show_checks, state_dir_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.remote.endpoint import SshOptions

_COMMENT = "A Seamark session. 'seamark config {name} --explain' says what else may stand here."


@click.command(no_args_is_help=True)
@click.argument("name")
@click.argument("primary", type=click.Path(path_type=str))
@click.argument("secondary")
@click.argument("push", metavar="[push-pem]", required=False, type=click.Choice(["push-pem"]))
@click.option(
    "--push-pem", "push_flag", is_flag=True, help="Make a key for this session alone, and put it there."
)
@click.option("--ssh-port", type=click.IntRange(1, 65535), metavar="N", help="Port of the secondary's sshd.")
@click.option("--identity", type=click.Path(path_type=str), metavar="FILE", help="Private key for ssh.")
@click.option("--accept-new-host-key", is_flag=True, help="Pin the key of a host that is not known yet.")
@click.option(
    "--set", "assigned", multiple=True, metavar="KEY=VALUE", help="Any other setting; may be repeated."
)
@click.option("--adopt", is_flag=True, help="Take over a secondary that is not empty; right data stays.")
@click.option("--force", is_flag=True, help="Create it although checks failed that need not be fatal.")
@click.option("-n", "--dry-run", is_flag=True, help="Show the checks, and create nothing.")
@state_dir_option
def create(
    name: str,
    primary: str,
    secondary: str,
    push: str | None,
    push_flag: bool,
    ssh_port: int | None,
    identity: str | None,
    accept_new_host_key: bool,
    assigned: tuple[str, ...],
    adopt: bool,
    force: bool,
    dry_run: bool,
    state_dir: str,
) -> None:
    """Create session NAME, which replicates PRIMARY to SECONDARY, a directory or [user@]host:/path.

    PRIMARY is a directory, or a Gluster volume, gluster://HOST/VOLUME[/SUBDIR]: its changelog is switched on.

    With push-pem the session gets a key of its own, put on the secondary by the access that you have now, which
    can do nothing there but serve this session.
    """
    if name == ALL:
        raise UsageError(f'"{ALL}" means all sessions: choose another name')
    place = SessionDir(Path(state_dir), name)
    if place.config.exists():
        raise UsageError(f"there is a session {name} already; choose another name, or delete it first")
    if identity is not None and not os.path.isfile(identity):
        raise UsageError(f"--identity {identity}: no such file")
    values = [_assignment(text) for text in assigned]
    config = settings.SessionConfig(
        primary=primary_of(primary),
        secondary=str(parse_target(secondary)),
        ssh=settings.SshSettings(
            port=ssh_port,
            identity=None if identity is None else os.path.abspath(identity),
            accept_new_host_key=accept_new_host_key,
        ),
    )
    pushes = bool(push) or push_flag
    if pushes and not parse_target(secondary).is_remote:
        raise UsageError("push-pem is for a secondary that is reached by ssh: user@host:/path")
    state = SessionState(id=pair_id(config.primary, config.secondary), adopt=adopt)
    with tempfile.TemporaryDirectory(prefix="seamark-") as scratch:
        draft = Path(scratch) / "session.toml"
        session_file.write_new(draft, config, _COMMENT.format(name=name))
        for key, value in values:
            session_file.set_key(draft, key, value)
        pinned = Path(scratch) / "known_hosts"
        session = Session.of(name, session_file.read(draft), state, Path(scratch) / "mount")
        access = operators_access(place, session, known_hosts=pinned, asks=pushes)
        outcomes = show_checks(_checks(place, session, state_dir, access))
        if dry_run:
            raise SystemExit(0 if all(outcome.ok for outcome in outcomes) else 1)
        _refuse(name, outcomes, force=force)
        if pushes:
            _push(place, session, draft, access)
        _have_recorded(session)
        session_file.replace_file(place.named_config, draft.read_text(encoding="utf-8"))
        place.save_state(state)
        if pinned.exists():
            session_file.replace_file(place.known_hosts, pinned.read_text(encoding="utf-8"))
    click.echo(f"session {name} created; start it with: seamark start {name}")


def _assignment(text: str) -> tuple[settings.Key, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: give KEY=VALUE")
    key = settings.key_named(name)
    return key, settings.parse(key, value)


def _refuse(name: str, outcomes: list[Outcome], *, force: bool) -> None:
    """Raises SeamarkError, with the exit code of the first check that prevents the session."""
    failed = [outcome for outcome in outcomes if not outcome.ok and (outcome.fatal or not force)]
    if not failed:
        return
    first = next((outcome for outcome in failed if outcome.fatal), failed[0])
    way_out = "" if first.fatal else " (--force creates it all the same)"
    raise SeamarkError(f"session {name} was not created: {first.name}: {first.says}{way_out}", first.code)


def _checks(place: SessionDir, session: Session, state_dir: str, access: SshOptions) -> Iterator[Outcome]:
    """The checks, loaded only when they are made: usage errors are quick."""
    from scheduler.checks.pair import check_pair

    return check_pair(place, session, state_dir, access)


def _have_recorded(session: Session) -> None:
    from scheduler.primary import have_recorded

    if have_recorded(session) and session.gluster is not None:
        click.echo(
            f"changelog.changelog of volume {session.gluster.volume} is on now: its bricks record what changes"
        )


def _push(place: SessionDir, session: Session, draft: Path, access: SshOptions) -> None:
    """Put a key there, and into the session's file. Raises SeamarkError, and then nothing is left of it."""
    from scheduler.keys import push_key

    there = place.path.exists()
    try:
        show_checks(push_key(place, session, access))
    except BaseException:
        if not there:
            shutil.rmtree(place.path, ignore_errors=True)
        raise
    session_file.set_key(draft, settings.key_named("ssh.identity"), str(place.key))
