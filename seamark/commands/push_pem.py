"""`seamark push-pem`: a key for one session, which can do nothing else there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replication import session_file, settings
from replication.errors import UsageError
from seamark.commands.shared import named_session, session_argument, show_checks, state_dir_option

if TYPE_CHECKING:
    from replication.remote.endpoint import SshOptions
    from replication.session import Session, SessionDir


@click.command(name="push-pem", no_args_is_help=True)
@session_argument
@click.option(
    "--identity", type=click.Path(path_type=str), metavar="FILE", help="Private key to log in with this once."
)
@click.option(
    "--nodes", is_flag=True, help="On the other nodes of the primary's Gluster pool, to follow their bricks."
)
@state_dir_option
def push_pem(name: str, identity: str | None, nodes: bool, state_dir: str) -> None:
    """Give session NAME a new key of its own on its secondary, in place of the one before.

    The far side's copy of the secondary agent is renewed with it, as is needed after some upgrades. With --nodes
    the same is done on the other nodes with bricks of the primary, a Gluster volume; nothing is done on the secondary.
    """
    from scheduler.keys import by_own_key, has_own_key, push_key

    place = named_session(state_dir, name)
    session = place.load()
    if has_own_key(place, session):
        session = without_identity(session)
    if nodes:
        from scheduler.node_keys import push_to_nodes

        show_checks(push_to_nodes(place, session, operators_access(place, session, identity)))
        click.echo(f"session {name} follows the bricks of other nodes when it is started again")
        return
    show_checks(push_key(place, session, operators_access(place, session, identity)))
    if not has_own_key(place, place.load()):
        own = by_own_key(place, session).ssh.identity
        session_file.set_key(place.named_config, settings.key_named("ssh.identity"), own)
    click.echo(f"session {name} has a new key")


def without_identity(session: Session) -> Session:
    """The session as it is reached by whatever keys the operator has."""
    import msgspec

    return msgspec.structs.replace(session, ssh=msgspec.structs.replace(session.ssh, identity=None))


def operators_access(
    place: SessionDir,
    session: Session,
    identity: str | None = None,
    known_hosts: Path | None = None,
    *,
    asks: bool = True,
) -> SshOptions:
    """How the operator gets there now: by key, or (``asks``) by a password that is asked for at a terminal, once."""
    from replication.remote.look import ssh_options

    options = ssh_options(place, session, dry=True)
    if identity is not None:
        if not os.path.isfile(identity):
            raise UsageError(f"--identity {identity}: no such file")
        options = replace(options, identity=Path(os.path.abspath(identity)))
    if known_hosts is not None:
        options = replace(options, known_hosts_file=known_hosts)
    return replace(options, ask_password=_asker() if asks and sys.stdin.isatty() else None)


def _asker() -> Callable[[str], str]:
    said: dict[str, str] = {}

    def ask(login: str) -> str:
        if login not in said:
            said[login] = click.prompt(f"password of {login}", hide_input=True, err=True)
        return said[login]

    return ask
