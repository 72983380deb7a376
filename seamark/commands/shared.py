"""What commands on sessions have in common: where sessions are, and which one is meant."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replication.errors import NotFoundError, UsageError
from replication.gluster.address import parse_address
from replication.remote.target import Target, parse_target
from replication.session import SessionDir, default_state_dir, known_session, session_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from replication.remote.endpoint import SshOptions
    from scheduler.checks.outcome import Outcome


ALL = "all"  # in the place of a session's name: what concerns all of them


class Quantity(click.ParamType[Any]):
    """A quantity of replication.quantities, as settings have it too; ``above_zero``: nothing is not enough."""

    def __init__(self, kind: type[Any], *, above_zero: bool = False) -> None:
        self.name = kind.__name__.lower()
        self._kind = kind
        self._above_zero = above_zero

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        if isinstance(value, self._kind):
            return value
        try:
            found = self._kind.parse(value)
        except ValueError as error:
            self.fail(str(error))
        if self._above_zero and not found:
            self.fail(f"{value!r} is not above zero")
        return found


def complete_session(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of sessions that begin like this, for a shell."""
    state_dir = Path(ctx.params.get("state_dir") or default_state_dir())
    return [name for name in session_names(state_dir) if name.startswith(incomplete)]


def _absolute(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    return os.path.abspath(value or default_state_dir())


def state_dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--state-dir: given to the command as an absolute path."""
    return click.option(
        "--state-dir",
        type=click.Path(path_type=str),
        envvar="SEAMARK_STATE_DIR",
        callback=_absolute,
        metavar="DIR",
        is_eager=True,
        help="Where sessions keep their state. [default: /var/lib/seamark for root, else ~/.local/state/seamark]",
    )(command)


def ip_address(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    """The callback of an option that says where something listens."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not an IP address: 127.0.0.1, ::1, 0.0.0.0 …") from None


def jobs_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--jobs."""
    return click.option(
        "--jobs",
        type=click.IntRange(1, 64),
        default=2,
        show_default=True,
        metavar="N",
        help="Data tasks at the same time.",
    )(command)


def way_options(where: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--ssh-port, --identity, --accept-new-host-key: how a host is reached. ``where``: whose sshd it is."""
    options = (
        click.option(
            "--ssh-port", type=click.IntRange(1, 65535), metavar="N", help=f"Port of the {where}'s sshd."
        ),
        click.option(
            "--identity", type=click.Path(path_type=str), metavar="FILE", help="Private key for ssh."
        ),
        click.option(
            "--accept-new-host-key", is_flag=True, help="Pin the key of a host that is not known yet."
        ),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def session_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """NAME: which session."""
    return click.argument("name", shell_complete=complete_session)(command)


def primary_of(text: str) -> str:
    """PRIMARY as a session has it: the address of a Gluster volume, or an absolute path. Raises UsageError."""
    if not text:
        raise UsageError("the primary is empty: give a directory, or gluster://HOST/VOLUME")
    address = parse_address(text)
    return os.path.abspath(text) if address is None else str(address)


def named_session(state_dir: str, name: str) -> SessionDir:
    """A session that was made by `create`, or by hand. Raises NotFoundError."""
    place = known_session(Path(state_dir), name)
    if not place.named_config.exists():
        raise NotFoundError(
            f"session {name} belongs to a 'seamark run' in the foreground: it has no file in "
            f"{place.named_config.parent}, and no life of its own"
        )
    return place


_SIGNS = {"ok": "[OK]  ", "warn": "[WARN]", "fail": "[FAIL]"}


def show_checks(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Print each check as soon as it was made; all of them."""
    seen = []
    for outcome in outcomes:
        text = f"{_SIGNS[outcome.level]} {outcome.name}: {outcome.says}"
        click.echo(text.encode(errors="backslashreplace").decode())
        seen.append(outcome)
    return seen


def meant_secondary(
    what: str, state_dir: str, ssh_port: int | None, identity: str | None, accept: bool
) -> tuple[SessionDir | None, Target, SshOptions | None]:
    """The session, if its name was given; where the secondary is; and how it is reached. Raises SeamarkError."""
    from replication.remote.endpoint import SshOptions

    if what in session_names(Path(state_dir)):
        place = known_session(Path(state_dir), what)
        return place, *way_of(place)
    if "/" not in what and ":" not in what:
        known = ", ".join(session_names(Path(state_dir))) or "none"
        raise NotFoundError(
            f"there is no session {what} here (known: {known}); give the secondary's path, or host:/path"
        )
    target = parse_target(what if ":" in what.partition("/")[0] else os.path.abspath(what))
    port_and_key = {"port": ssh_port, "identity": Path(identity) if identity else None}
    return None, target, SshOptions(**port_and_key, accept_new_host_key=accept) if target.is_remote else None  # type: ignore[arg-type]


def way_of(place: SessionDir) -> tuple[Target, SshOptions]:
    """Where a session's secondary is, and how it is reached. Raises SeamarkError."""
    from replication.remote.look import ssh_options

    session = place.load()
    return parse_target(session.secondary), ssh_options(place, session)
