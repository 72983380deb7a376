"""`seamark install-units`: have systemd run the monitor."""

from __future__ import annotations

import os

import click

from replication.errors import SeamarkError, UsageError
from replication.session_file import replace_file
from seamark.units import NAME, monitor_unit


@click.command()
@click.option(
    "--system", "system", flag_value=True, type=bool, default=None, help="For the whole system (root)."
)
@click.option("--user", "system", flag_value=False, type=bool, help="For this user.")
@click.option(
    "-n", "--dry-run", is_flag=True, help="Print the unit and where it would go, and write nothing."
)
@click.argument("options", nargs=-1, metavar="[-- OPTIONS OF MONITOR]")
def install_units(system: bool | None, dry_run: bool, options: tuple[str, ...]) -> None:
    """Write the systemd unit that runs 'seamark monitor' with OPTIONS (after --), for root by default for the system."""
    if system is None:
        system = os.geteuid() == 0
    unit = monitor_unit(system=system, options=options)
    if dry_run:
        click.echo(f"# {unit.path}\n{unit.text}", nl=False)
        return
    if system and os.geteuid() != 0:
        raise UsageError("--system needs root; --user installs it for you alone")
    try:
        unit.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SeamarkError(f"cannot write {unit.path}: {error.strerror}") from None
    replace_file(unit.path, unit.text)
    unit.path.chmod(0o644)
    systemctl = "systemctl" if system else "systemctl --user"
    click.echo(f"{unit.path} written; now: {systemctl} daemon-reload && {systemctl} enable --now {NAME}")
