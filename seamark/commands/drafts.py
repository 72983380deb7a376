"""What `create` and `recover` have in common: a session that is checked before there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from replication import session_file, settings
from replication.errors import SeamarkError, UsageError
from replication.private import remove_tree
from replication.remote.target import parse_target
from replication.session import Session, SessionDir, SessionState
from scheduler.checks.outcome import Outcome
from seamark.commands.push_pem import operators_access
from seamark.commands.shared import show_checks, way_options
from seamark.progress import text

if TYPE_CHECKING:
    from replication.remote.endpoint import SshOptions

_OPTIONS = (
    click.argument("push", metavar="[push-pem]", required=False, type=click.Choice(["push-pem"])),
    click.option(
        "--push-pem", "push_flag", is_flag=True, help="Make a key for this session alone, and put it there."
    ),
    way_options("secondary"),
    click.option(
        "--set", "assigned", multiple=True, metavar="KEY=VALUE", help="Any other setting; may be repeated."
    ),
)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How the secondary is reached, and other settings."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wants_push(secondary: str, word: str | None, *, flag: bool) -> bool:
    """Whether a key of the session's own is to be put there. Raises UsageError where there is no ssh."""
    pushes = bool(word) or flag
    if pushes and not parse_target(secondary).is_remote:
        raise UsageError("push-pem is for a secondary that is reached by ssh: user@host:/path")
    return pushes


def assignment(text: str) -> tuple[settings.Key, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: give KEY=VALUE")
    key = settings.key_named(name)
    return key, settings.parse(key, value)


def make_session(
    place: SessionDir,
    draft: Path,
    state: SessionState,
    state_dir: str,
    *,
    pushes: bool,
    push_nodes: bool = False,
    force: bool,
    dry_run: bool,
    take_over: bool = False,
) -> None:
    """Check a session whose settings stand in ``draft``, and make it: with its state, which is written last, it is there.

    ``take_over``: from gsyncd. Raises SeamarkError. Exits after the checks of a dry run.
    """
    from scheduler.checks.pair import check_pair  # usage errors are quick

    pinned = draft.with_name("known_hosts")
    session = Session.of(place.name, session_file.read(draft), state, draft.with_name("mount"))
    access = operators_access(place, session, known_hosts=pinned, asks=pushes or push_nodes)
    if take_over:
        state = _take_over(session, state, access)
    outcomes = show_checks(check_pair(place, session, state_dir, access, gets_nodes_key=push_nodes))
    if dry_run:
        raise SystemExit(0 if all(outcome.ok for outcome in outcomes) else 1)
    _refuse(place.name, outcomes, force=force)
    with _nothing_left(place):
        if pushes:
            _push(place, session, draft, access)
        if push_nodes:
            _push_to_nodes(place, session, access)
    _have_recorded(session)
    session_file.replace_file(place.named_config, draft.read_text(encoding="utf-8"))
    if pinned.exists():
        session_file.replace_file(place.known_hosts, pinned.read_text(encoding="utf-8"))
    if take_over:
        from scheduler.takeover import begin_from

        begin_from(place, state.believes_ns)
    place.save_state(state)


def _take_over(session: Session, state: SessionState, access: SshOptions) -> SessionState:
    """The state of a session that goes on where gsyncd ended. Raises SeamarkError."""
    from scheduler.takeover import gsyncds_mark

    mark_ns = gsyncds_mark(session, access)
    click.echo(f"gsyncd has replicated everything up to {text.moment(mark_ns / 1e9)}, it says")
    return msgspec.structs.replace(state, believes_ns=mark_ns)


def _have_recorded(session: Session) -> None:
    from scheduler.primary import have_recorded

    if have_recorded(session) and session.gluster is not None:
        click.echo(
            f"changelog.changelog of volume {session.gluster.volume} is on now: its bricks record what changes"
        )


def _refuse(name: str, outcomes: list[Outcome], *, force: bool) -> None:
    """Raises SeamarkError, with the exit code of the first check that prevents the session."""
    failed = [outcome for outcome in outcomes if not outcome.ok and (outcome.fatal or not force)]
    if not failed:
        return
    first = next((outcome for outcome in failed if outcome.fatal), failed[0])
    way_out = "" if first.fatal else " (--force creates it all the same)"
    raise SeamarkError(f"session {name} was not created: {first.name}: {first.says}{way_out}", first.code)


@contextlib.contextmanager
def _nothing_left(place: SessionDir) -> Iterator[None]:
    """Of the session's directory, where there was none before and something goes wrong."""
    there = place.path.exists()
    try:
        yield
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                remove_tree(place.path)
        raise


def _push_to_nodes(place: SessionDir, session: Session, access: SshOptions) -> None:
    """Raises SeamarkError."""
    from scheduler.node_keys import push_to_nodes

    show_checks(push_to_nodes(place, session, access))


def _push(place: SessionDir, session: Session, draft: Path, access: SshOptions) -> None:
    """Put a key there, and into the session's file. Raises SeamarkError."""
    from scheduler.keys import push_key

    show_checks(push_key(place, session, access))
    session_file.set_key(draft, settings.key_named("ssh.identity"), str(place.key))
