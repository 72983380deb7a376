"""`seamark config`: the settings of a session; `seamark configcheck`: whether files of sessions would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import tomlkit

from replication import session_file, settings
from replication.errors import NotFoundError, SeamarkError, UsageError
from replication.session import SessionDir, session_names
from scheduler.monitor_client import ask_monitor
from seamark.commands.shared import named_session, session_argument, state_dir_option


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
    """Show or change settings of session NAME. A value that will not do changes nothing."""
    place = named_session(state_dir, name)
    if verb == "get":
        _show(place, key, explain=explain)
        return
    if key is None or (verb == "set") != (value is not None):
        raise UsageError("give: config NAME set KEY VALUE, or: config NAME reset KEY")
    found = settings.key_named(key)
    if verb == "set":
        session_file.set_key(place.named_config, found, settings.parse(found, value or ""))
    else:
        session_file.reset_key(place.named_config, found)
    now = _shown(_value(place.load_config(), found.name))
    later = ""
    if found.restart and name in (ask_monitor(state_dir, "status") or {}).get("sessions", {}):
        later = f" (when the session is started again: seamark stop {name}; seamark start {name})"
    click.echo(f"{found.name} = {now}{later}")


def _show(place: SessionDir, key: str | None, *, explain: bool) -> None:
    said = place.load_config()
    names = settings.keys()
    if key is not None:
        names = {key: settings.key_named(key)}
    written = tomlkit.parse(place.named_config.read_text(encoding="utf-8")).unwrap()
    for found in names.values():
        value = _shown(_value(said, found.name))
        if not explain:
            click.echo(f"{found.name} = {value}" if key is None else value)
            continue
        where = str(place.named_config) if _stands(written, found.name) else "default"
        restart = "; counts when the session is started again" if found.restart else ""
        click.echo(
            f"{found.name} = {value}\n    {found.meaning}{restart}\n    default: {_shown(found.default)}; from: {where}"
        )


def _value(said: Any, name: str) -> Any:
    for part in name.split("."):
        said = getattr(said, part)
    return said


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
    """Check the files of sessions (all of them, or those named), and say what is wrong in a line each."""
    paths = [Path(n) if "/" in n or n.endswith(".toml") else _file_of(state_dir, n) for n in names]
    if not names:
        places = [SessionDir(Path(state_dir), name) for name in session_names(Path(state_dir))]
        paths = [place.named_config for place in places if place.named_config.exists()]
    worst = 0
    for path in paths:
        try:
            session_file.read(path)
            click.echo(f"[OK]   {path}")
        except FileNotFoundError:
            raise NotFoundError(f"{path}: no such file") from None
        except SeamarkError as error:
            click.echo(f"[FAIL] {error.message}")
            worst = max(worst, int(error.exit_code))
    return worst


def _file_of(state_dir: str, name: str) -> Path:
    return named_session(state_dir, name).named_config
