"""`seamark monitor`: keep the sessions of this node alive."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from replication.session import node_config
from replication.session_file import read_servers
from seamark.commands.roles import ROLES
from seamark.commands.run import FlowerCommand, address_option, flower_option
from seamark.commands.servers import configured, server_options
from seamark.commands.shared import ip_address, state_dir_option
from seamark.logs import log_to_file, session_log, setup_logging
from seamark.progress.display import Display
from tasks.servers import choose

METRICS_PORT = 9474


@click.command(cls=FlowerCommand)
@server_options
@flower_option
@address_option("--flower-address")
@click.option(
    "--metrics",
    "metrics_port",
    is_flag=False,
    flag_value=METRICS_PORT,
    type=click.IntRange(1, 65535),
    metavar="[PORT]",
    help=f"Metrics for Prometheus on http://127.0.0.1:PORT/metrics (without PORT: {METRICS_PORT}).",
)
@click.option(
    "--metrics-address",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    callback=ip_address,
    help="Where --metrics listens: whoever reaches it can read them.",
)
@click.option(
    "--without",
    type=click.Choice(ROLES),
    multiple=True,
    metavar="ROLE",
    help="A role that a supervisor of your own runs: agent, control, data or beat (seamark roles NAME says how).",
)
@state_dir_option
def monitor(
    broker: str | None,
    redis: str | None,
    flower_port: int | None,
    flower_address: str,
    metrics_port: int | None,
    metrics_address: str,
    without: tuple[str, ...],
    state_dir: str,
) -> int:
    """Keep all started sessions of this node running, until told to stop."""
    servers = configured(broker, redis, read_servers(node_config(Path(state_dir))))
    setup_logging(Display(sys.stderr), os.path.join(state_dir, "logs", "monitor.log"))
    choose(servers)
    # Celery and redis are loaded only here: usage errors are quick
    from scheduler.monitor import Monitor, MonitorOptions
    from scheduler.server_check import check_servers

    if servers is not None:
        check_servers(servers)

    def keep_log(name: str) -> None:
        log_to_file(session_log(state_dir, name))

    return Monitor(
        MonitorOptions(
            state_dir=state_dir,
            keep_log=keep_log,
            servers=servers,
            without=frozenset(without),
            flower_port=flower_port,
            flower_address=flower_address,
            metrics_port=metrics_port,
            metrics_address=metrics_address,
        )
    ).run()
