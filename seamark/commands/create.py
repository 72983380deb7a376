"""`seamark create`: a named session, after a look at everything that it needs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from replication import session_file, settings
from replication.errors import UsageError
from replication.gluster.address import parse_address
from replication.remote.target import parse_target
from replication.session import SessionDir, SessionState, pair_id
from seamark.commands.drafts import access_options, assignment, make_session, wants_push
from seamark.commands.shared import ALL, primary_of, state_dir_option

_COMMENT = "A Seamark session. 'seamark config {name} --explain' says what else may stand here."


@click.command(no_args_is_help=True)
@click.argument("name")
@click.argument("primary", type=click.Path(path_type=str))
@click.argument("secondary")
@access_options
@click.option("--adopt", is_flag=True, help="Take over a secondary that is not empty; right data stays.")
@click.option(
    "--take-over-from-gsyncd",
    "take_over",
    is_flag=True,
    help="Go on from where GlusterFS's own geo-replication, which is stopped, has come: nothing that is right is sent.",
)
@click.option("--force", is_flag=True, help="Create it although checks failed that need not be fatal.")
@click.option(
    "--push-nodes",
    is_flag=True,
    help="Put a key on the other nodes of the primary's Gluster pool, to follow their bricks.",
)
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
    take_over: bool,
    force: bool,
    push_nodes: bool,
    dry_run: bool,
    state_dir: str,
) -> None:
    """Create session NAME, which replicates PRIMARY to SECONDARY.

    PRIMARY is a directory, or a Gluster volume, gluster://HOST/VOLUME[/SUBDIR]: its changelog is switched on. SECONDARY is
    a directory, [user@]host:/path, or gluster://[USER@]HOST/VOLUME[/SUBDIR], a volume that is mounted on HOST.

    With push-pem the session gets a key of its own, put on the secondary by the access that you have now, which
    can do nothing there but serve this session. With --push-nodes it gets another one, for the other nodes with bricks of
    a Gluster volume: there it can do nothing but tell what these bricks record.
    """
    if name == ALL:
        raise UsageError(f'"{ALL}" means all sessions: choose another name')
    place = SessionDir(Path(state_dir), name)
    if place.config.exists():
        raise UsageError(f"there is a session {name} already; choose another name, or delete it first")
    if place.progress.exists():
        raise UsageError(f"session {name} was not deleted to the end; delete it again first")
    if identity is not None and not os.path.isfile(identity):
        raise UsageError(f"--identity {identity}: no such file")
    values = [assignment(text) for text in assigned]
    config = settings.SessionConfig(
        primary=primary_of(primary),
        secondary=str(parse_target(secondary)),
        ssh=settings.SshSettings(
            port=ssh_port,
            identity=None if identity is None else os.path.abspath(identity),
            accept_new_host_key=accept_new_host_key,
        ),
    )
    pushes = wants_push(secondary, push, flag=push_flag)
    if push_nodes and parse_address(config.primary) is None:
        raise UsageError("--push-nodes is for a primary that is a Gluster volume: gluster://HOST/VOLUME")
    state = SessionState(id=pair_id(config.primary, config.secondary), adopt=adopt or take_over)
    with tempfile.TemporaryDirectory(prefix="seamark-") as scratch:
        draft = Path(scratch) / "session.toml"
        session_file.write_new(draft, config, _COMMENT.format(name=name))
        for key, value in values:
            session_file.set_key(draft, key, value)
        make_session(
            place,
            draft,
            state,
            state_dir,
            pushes=pushes,
            push_nodes=push_nodes,
            force=force,
            dry_run=dry_run,
            take_over=take_over,
        )
    click.echo(f"session {name} created; start it with: seamark start {name}")
