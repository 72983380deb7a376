"""`seamark create`: a named session, after a look at everything that it needs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from replication import session_file, settings
from replication.errors import LockedError, SeamarkError, UsageError
from replication.remote.target import parse_target
from replication.session import Session, SessionDir, SessionState, pair_id, session_names
from seamark.commands.shared import ALL, state_dir_option

_COMMENT = "A Seamark session. 'seamark config {name} --explain' says what else may stand here."


@click.command(no_args_is_help=True)
@click.argument("name")
@click.argument("primary", type=click.Path(path_type=str))
@click.argument("secondary")
@click.option("--ssh-port", type=click.IntRange(1, 65535), metavar="N", help="Port of the secondary's sshd.")
@click.option("--identity", type=click.Path(path_type=str), metavar="FILE", help="Private key for ssh.")
@click.option("--accept-new-host-key", is_flag=True, help="Pin the key of a host that is not known yet.")
@click.option(
    "--set", "assigned", multiple=True, metavar="KEY=VALUE", help="Any other setting; may be repeated."
)
@click.option("--adopt", is_flag=True, help="Take over a secondary that is not empty; right data stays.")
@click.option("--force", is_flag=True, help="Create it although checks failed.")
@click.option("-n", "--dry-run", is_flag=True, help="Show the checks, and create nothing.")
@state_dir_option
def create(
    name: str,
    primary: str,
    secondary: str,
    ssh_port: int | None,
    identity: str | None,
    accept_new_host_key: bool,
    assigned: tuple[str, ...],
    adopt: bool,
    force: bool,
    dry_run: bool,
    state_dir: str,
) -> None:
    """Create session NAME, which replicates the directory PRIMARY to SECONDARY, a directory or [user@]host:/path."""
    if name == ALL:
        raise UsageError(f'"{ALL}" means all sessions: choose another name')
    place = SessionDir(Path(state_dir), name)
    if place.config.exists():
        raise UsageError(f"there is a session {name} already; choose another name, or delete it first")
    if identity is not None and not os.path.isfile(identity):
        raise UsageError(f"--identity {identity}: no such file")
    config = settings.SessionConfig(
        primary=os.path.abspath(primary),
        secondary=str(parse_target(secondary)),
        ssh=settings.SshSettings(
            port=ssh_port,
            identity=None if identity is None else os.path.abspath(identity),
            accept_new_host_key=accept_new_host_key,
        ),
    )
    values = [_assignment(text) for text in assigned]
    state = SessionState(id=pair_id(config.primary, config.secondary), adopt=adopt)
    _refuse_pair(place, Path(state_dir), state.id)
    ok = _show_checks(place, Session.of(name, config, state), state_dir)
    if dry_run:
        raise SystemExit(0 if ok else 1)
    if not ok and not force:
        raise SeamarkError(f"session {name} was not created: put right what failed, or use --force")
    session_file.write_new(place.named_config, config, _COMMENT.format(name=name))
    for key, value in values:
        session_file.set_key(place.named_config, key, value)
    place.save_state(state)
    click.echo(f"session {name} created; start it with: seamark start {name}")


def _assignment(text: str) -> tuple[settings.Key, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: give KEY=VALUE")
    key = settings.key_named(name)
    return key, settings.parse(key, value)


def _refuse_pair(place: SessionDir, state_dir: Path, pair: str) -> None:
    """Two sessions on one pair would fight over the secondary. Raises LockedError."""
    for other in session_names(state_dir):
        try:
            state = SessionDir(state_dir, other).state()
        except SeamarkError:
            continue  # a damaged session prevents no other
        if other != place.name and state is not None and state.id == pair:
            raise LockedError(f"session {other} replicates the same primary to the same secondary")


def _show_checks(place: SessionDir, session: Session, state_dir: str) -> bool:
    from scheduler.checks import check_pair

    ok = True
    for outcome in check_pair(place, session, state_dir):
        click.echo(f"{'[OK]  ' if outcome.ok else '[FAIL]'} {outcome.name}: {outcome.says}")
        ok = ok and outcome.ok
    return ok
