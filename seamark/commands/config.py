"""`seamark config`: the settings of a session, or of the node; `seamark configcheck`: whether their files would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import click
import tomlkit
from msgspec import Struct

from replication import session_file, settings
from replication.addresses import shown
from replication.errors import NotFoundError, SeamarkError, UsageError
from replication.server_settings import NodeSettings
from replication.session import SessionDir, node_config, session_names
from scheduler.monitor_client import ask_monitor
from seamark.commands.servers import refuse_password
from seamark.commands.shared import ALL, named_session, session_argument, state_dir_option

_ADDRESSES = ("broker", "redis")


class _File(NamedTuple):
    """A file of settings, and what may stand in it."""

    path: Path
    keys: type[Struct]  # those that may be set
    kind: type[Struct]  # the whole of it
    values: Struct
    restart: str  # how to have a change count that needs one; empty: it is not running


def _file(state_dir: str, name: str) -> _File:
    """Raises NotFoundError, SettingsError."""
    running = ask_monitor(state_dir, "status")
    if name == ALL:
        path = node_config(Path(state_dir))
        restart = "when the monitor is started again" if running is not None else ""
        return _File(path, NodeSettings, NodeSettings, session_file.read_node(path), restart)
    place = named_session(state_dir, name)
    again = f"when the session is started again: seamark stop {name}; seamark start {name}"
    restart = again if name in (running or {}).get("sessions", {}) else ""
    config = place.load_config()
    return _File(place.named_config, settings.Settings, settings.SessionConfig, config, restart)


@click.command(no_args_is_help=True)
@session_argument
@click.argument("verb", type=click.Choice(["get", "set", "reset"]), default="get")
@click.argument("key", required=False)
@click.argument("value", required=False)
@click.option(
    "--explain", is_flag=True, help="Every key with its meaning, default, and where its value comes from."
)
@state_dir_option
def config(name: str, verb: str, key: str | None, value: str | None, explain: bool, state_dir: str) -> None:
    """Show or change settings of session NAME, or with "all" those of this node. A bad value changes nothing."""
    file = _file(state_dir, name)
    if verb == "get":
        _show(file, key, explain=explain)
        return
    if key is None or (verb == "set") != (value is not None):
        raise UsageError("give: config NAME set KEY VALUE, or: config NAME reset KEY")
    found = settings.key_named(key, file.keys)
    if verb == "set":
        if found.name in _ADDRESSES:
            refuse_password(found.name, found.name, value or "")
        parsed = settings.parse(found, value or "")
        if found.name == "checkpoint_snapshot" and parsed and file.kind is settings.SessionConfig:
            _check_snapshots(named_session(state_dir, name))
        session_file.set_key(file.path, found, parsed, file.kind)
    else:
        session_file.reset_key(file.path, found, file.kind)
    later = f" ({file.restart})" if found.restart and file.restart else ""
    click.echo(f"{found.name} = {_shown(_value(_file(state_dir, name).values, found.name))}{later}")


def _check_snapshots(place: SessionDir) -> None:
    """Ask the secondary whether it can have snapshots. Raises UsageError. One that is out of reach is asked at the start."""
    from replication.remote.look import looking
    from scheduler.preflight import NO_SNAPSHOTS

    session = place.load()
    try:
        with looking(place, session) as (_, hello):
            can = hello["fs"].get("snapshot", "not known yet")
    except SeamarkError as error:
        click.echo(
            f"the secondary could not be asked whether it can have snapshots: {error.message}", err=True
        )
        return
    if not can:
        raise UsageError(f"secondary {session.secondary}: {NO_SNAPSHOTS}")


def _show(file: _File, key: str | None, *, explain: bool) -> None:
    names = settings.keys(file.keys)
    if key is not None:
        names = {key: settings.key_named(key, file.keys)}
    text = file.path.read_text(encoding="utf-8") if file.path.exists() else ""
    written = tomlkit.parse(text).unwrap()
    for found in names.values():
        value = _shown(_value(file.values, found.name))
        if not explain:
            click.echo(f"{found.name} = {value}" if key is None else value)
            continue
        where = str(file.path) if _stands(written, found.name) else "default"
        restart = "; counts after a restart" if found.restart else ""
        click.echo(
            f"{found.name} = {value}\n    {found.meaning}{restart}\n    default: {_shown(found.default)}; from: {where}"
        )


def _value(said: Any, name: str) -> Any:
    """As it may be shown."""
    for part in name.split("."):
        said = getattr(said, part)
    return shown(said) if name in _ADDRESSES and said is not None else said


def _stands(written: dict[str, Any], name: str) -> bool:
    *tables, last = name.split(".")
    for table in tables:
        written = written.get(table, {})
    return last in written


def _shown(value: Any) -> str:
    """A value as a file has it."""
    return "(unset)" if value is None else tomlkit.item(settings.to_builtins(value)).as_string()


@click.command()
@click.argument("names", metavar="[NAME|FILE]...", nargs=-1)
@state_dir_option
def configcheck(names: tuple[str, ...], state_dir: str) -> int:
    """Check the files of sessions and of the node (all, or those named), and say what is wrong in a line each."""
    paths = [Path(n) if "/" in n or n.endswith(".toml") else _path_of(state_dir, n) for n in names]
    if not names:
        places = [SessionDir(Path(state_dir), name) for name in session_names(Path(state_dir))]
        paths = [place.named_config for place in places] + [node_config(Path(state_dir))]
        paths = [path for path in paths if path.exists()]
    worst = 0
    for path in paths:
        try:
            if path == node_config(Path(state_dir)):
                session_file.read_node(path)
            else:
                session_file.read(path)
            click.echo(f"[OK]   {path}")
        except FileNotFoundError:
            raise NotFoundError(f"{path}: no such file") from None
        except SeamarkError as error:
            click.echo(f"[FAIL] {error.message}")
            worst = max(worst, int(error.exit_code))
    return worst


def _path_of(state_dir: str, name: str) -> Path:
    return node_config(Path(state_dir)) if name == ALL else named_session(state_dir, name).named_config
