"""`seamark worker`: send data for sessions whose primary's node is another host."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from replication.errors import UsageError
from replication.session import node_config
from replication.session_file import read_servers
from seamark.commands.servers import configured
from seamark.commands.shared import jobs_option, state_dir_option
from seamark.logs import setup_logging
from seamark.progress.display import Display
from tasks.servers import choose


def _autoscale(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    most, _, fewest = value.partition(",")
    if not (most.isdecimal() and (fewest or "1").isdecimal() and int(most) >= int(fewest or 1) >= 1):
        raise click.BadParameter(f"{value!r}: give MOST,FEWEST, as 8,2")
    return int(most), int(fewest or 1)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@jobs_option
@click.option("--autoscale", callback=_autoscale, metavar="MOST,FEWEST", help="As many as there is work for.")
@click.option(
    "--name", metavar="NAME@HOST", help="What this worker is called. [default: worker@ and the host's name]"
)
@click.option(
    "-n", "--dry-run", is_flag=True, help="Check, print how plain Celery runs this worker, and end."
)
@state_dir_option
def worker(
    names: tuple[str, ...],
    jobs: int,
    autoscale: tuple[int, int] | None,
    name: str | None,
    dry_run: bool,
    state_dir: str,
) -> int:
    """Send data for sessions that this host has joined: those of these names, or all of them.

    The volume has to be mounted here. `seamark workers export` on the primary's node prints the file by which a host
    joins a session; the servers are those of the environment (SEAMARK_BROKER, …), or of the node's file (seamark.toml).
    """
    servers = configured(None, None, read_servers(node_config(Path(state_dir))))
    choose(servers)
    # Celery is loaded only here: usage errors are quick
    from scheduler.elsewhere import WorkerOptions, default_name, plain_celery, run_worker, sessions_to_serve
    from scheduler.server_check import check_servers

    sessions = sessions_to_serve(state_dir, names)
    if servers is None:
        raise UsageError(f"no broker: set SEAMARK_BROKER, or broker in {node_config(Path(state_dir))}")
    check_servers(servers)
    options = WorkerOptions(
        state_dir=state_dir, servers=servers, name=name or default_name(), processes=jobs, autoscale=autoscale
    )
    if dry_run:
        click.echo(plain_celery(options, sessions))
        return 0
    setup_logging(Display(sys.stderr), os.path.join(state_dir, "logs", "worker.log"))
    return run_worker(options, sessions)
