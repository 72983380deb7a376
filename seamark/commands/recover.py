"""`seamark recover`: a session whose state on the primary's side was lost, put together again from its secondary."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from replication import session_file
from replication.errors import ExitCode, LockedError, SeamarkError, UsageError
from replication.kept import kept_config
from replication.remote.target import parse_target
from replication.session import Session, SessionDir, SessionState, pair_id
from replication.settings import SessionConfig, SshSettings
from seamark.commands.drafts import access_options, assignment, make_session, wants_push
from seamark.commands.push_pem import operators_access
from seamark.commands.shared import ALL, state_dir_option

if TYPE_CHECKING:
    from replication.remote.endpoint import SshOptions

_ID = re.compile("[0-9a-f]{32}")
_COMMENT = "A Seamark session, recovered from its secondary. 'seamark config {name} --explain' says what else may stand here."


@click.command(no_args_is_help=True)
@click.argument("name")
@click.argument("primary", type=click.Path(path_type=str))
@click.argument("secondary")
@access_options
@click.option("--adopt", is_flag=True, help="PRIMARY is not the directory that it was: compare it by path.")
@click.option("--force", is_flag=True, help="Recover it although checks failed that need not be fatal.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what was found and the checks, and make nothing.")
@state_dir_option
def recover(
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
    """Put session NAME together again, whose state on this side was lost, from what its SECONDARY keeps of it.

    Its settings come from its file, if that is still here, else from the secondary, without events and their secrets. The
    mark is the one that the secondary has. When the session is started all of PRIMARY is compared; what is there is not
    sent again. Interrupted, run it again.
    """
    if name == ALL:
        raise UsageError(f'"{ALL}" means all sessions: choose another name')
    if identity is not None and not os.path.isfile(identity):
        raise UsageError(f"--identity {identity}: no such file")
    place = SessionDir(Path(state_dir), name)
    primary, secondary = os.path.abspath(primary), str(parse_target(secondary))
    pushes = wants_push(secondary, push, flag=push_flag)
    values = [assignment(text) for text in assigned]
    here = place.load_config() if place.config.exists() else None
    _check_lost(place, here, primary, secondary)
    ssh = SshSettings(
        port=ssh_port,
        identity=None if identity is None else os.path.abspath(identity),
        accept_new_host_key=accept_new_host_key,
    )
    with tempfile.TemporaryDirectory(prefix="seamark-") as scratch:
        asked = here or SessionConfig(primary=primary, secondary=secondary)
        asked = msgspec.structs.replace(asked, ssh=_reached(asked.ssh, ssh))
        session = Session.of(name, asked, SessionState(id=pair_id(primary, secondary), adopt=adopt))
        access = operators_access(place, session, known_hosts=Path(scratch) / "known_hosts", asks=pushes)
        found = _ask(session, access)
        owner = _checked(found, session, state_dir)
        kept = here or _kept(found["settings"], Path(scratch) / "kept.toml")
        config = msgspec.structs.replace(
            kept, primary=primary, secondary=secondary, ssh=_reached(kept.ssh, ssh)
        )
        draft = Path(scratch) / "session.toml"
        if here is not None:
            draft.write_text(place.named_config.read_text(encoding="utf-8"), encoding="utf-8")
        else:
            session_file.write_new(draft, config, _COMMENT.format(name=name))
        for key, value in values:
            session_file.set_key(draft, key, value)
        state = SessionState(id=owner["session"], root=owner["volume"] if not adopt else "", adopt=adopt)
        make_session(place, draft, state, state_dir, pushes=pushes, force=force, dry_run=dry_run)
    click.echo(f"session {name} recovered; start it with: seamark start {name}")


def _check_lost(place: SessionDir, config: SessionConfig | None, primary: str, secondary: str) -> None:
    """That there is something to recover, and no other session of that name. Raises SeamarkError."""
    if config is not None and (config.primary, config.secondary) != (primary, secondary):
        raise UsageError(
            f"session {place.name} replicates {config.primary} to {config.secondary}; choose another name"
        )
    if config is not None and place.state() is not None:
        raise UsageError(
            f"nothing of session {place.name} is lost here: start it with: seamark start {place.name}"
        )


def _reached(before: SshSettings, said: SshSettings) -> SshSettings:
    """How the secondary is reached: as is said now, else as before, but for a key that is lost."""
    there = before.identity is not None and os.path.isfile(before.identity)
    return msgspec.structs.replace(
        before,
        port=said.port or before.port,
        identity=said.identity or (before.identity if there else None),
        accept_new_host_key=said.accept_new_host_key or before.accept_new_host_key,
    )


def _ask(session: Session, access: SshOptions) -> dict[str, Any]:
    """Whose secondary it is, and what it keeps. Raises SeamarkError."""
    from replication.remote.answers import SecondaryError
    from replication.remote.launch import open_secondary
    from replication.remote.look import client_of
    from scheduler.preflight import refused

    link = open_secondary(parse_target(session.secondary), access)
    try:
        return client_of(link).belongs()
    except SecondaryError as error:
        raise refused(session, error) from None
    finally:
        link.close()


def _checked(found: dict[str, Any], session: Session, state_dir: str) -> dict[str, Any]:
    """The owner of the secondary, who is to be the session that was lost. Raises SeamarkError."""
    from scheduler.checks.pair import check_other_sessions
    from scheduler.preflight import check_primary

    owner = found["owner"]
    where = f"secondary {session.secondary}"
    if owner is not None and not _is_an_owner(owner):
        raise SeamarkError(f"{where}: what its .seamark/owner says is nothing that Seamark has written")
    if owner is None:
        raise SeamarkError(
            f"{where}: no session has a secondary there, or its .seamark is lost: seamark create … --adopt takes "
            "over what is there",
            ExitCode.NOT_FOUND,
        )
    if owner.get("promoted"):
        raise LockedError(
            f"{where} was promoted, and is a primary now: its changes come back by seamark failback"
        )
    if owner.get("volume") not in (check_primary(session), None) and not session.adopt:
        raise LockedError(
            f"{where} is a copy of another volume than what is in {session.primary} now (not mounted? restored?); if "
            "that is the right one, give --adopt: it is then compared by path, and what is right there is not sent again"
        )
    try:
        check_other_sessions(session.name, Path(state_dir), owner["session"])
    except LockedError as error:
        raise LockedError(f"{error.message}: nothing is lost") from None
    return dict(owner)


def _is_an_owner(owner: object) -> bool:
    """It comes from another host, and becomes part of names here."""
    return (
        isinstance(owner, dict)
        and all(isinstance(owner.get(key), str) for key in ("session", "volume"))
        and _ID.fullmatch(owner["session"]) is not None
    )


def _kept(text: str | None, scratch: Path) -> SessionConfig:
    if text is None:
        click.echo("no settings are kept there (an older Seamark filled it): the defaults are taken")
        return SessionConfig(primary="/", secondary="/")
    kept = kept_config(text, scratch)
    click.echo("its settings were kept there, but for whom events go to")
    return kept
