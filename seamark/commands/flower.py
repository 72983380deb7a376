"""`seamark flower`: Flower with the pages of the sessions, behind a password."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from replication.errors import UsageError
from replication.session import node_config
from replication.session_file import read_servers
from seamark.commands.run import FLOWER_PORT, address_option
from seamark.commands.servers import configured, server_options
from seamark.commands.shared import state_dir_option
from seamark.logs import setup_logging
from seamark.progress.display import Display
from tasks.servers import choose


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=FLOWER_PORT, show_default=True, metavar="N", help="Port to listen on."
)  # fmt: skip
@address_option("--address")
@click.option(
    "--password-file", type=click.Path(path_type=str), metavar="FILE",
    help="Its first line is the password. [default: flower/password in the state directory, made when it is missing]",
)  # fmt: skip
@click.option("--show-password", is_flag=True, help="Print the password, and end. The user is seamark.")
@click.option(
    "--session-metrics/--no-session-metrics", default=True, help="Metrics of the sessions in /metrics, beside those of tasks."
)  # fmt: skip
@server_options
@state_dir_option
def flower(
    port: int, flower_address: str, password_file: str | None, show_password: bool, session_metrics: bool,
    broker: str | None, redis: str | None, state_dir: str,
) -> int:  # fmt: skip
    """Show sessions, workers, tasks and queues in a browser, to whoever has the password.

    `seamark run --flower` and `seamark monitor --flower` start it; by itself it is for containers, and for who
    has a supervisor of their own.
    """
    from seamark.pages.password import own_password_file, read_password

    password = read_password(Path(password_file) if password_file else own_password_file(state_dir))
    if show_password:
        click.echo(password)
        return 0
    servers = configured(broker, redis, read_servers(node_config(Path(state_dir))))
    if servers is None:
        raise UsageError("no broker: give --broker, or start Flower with 'seamark monitor --flower'")
    choose(servers)
    setup_logging(Display(sys.stderr), os.path.join(state_dir, "logs", "flower.log"))
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    # Flower and Celery are loaded only here: usage errors are quick
    from seamark.pages.server import ServerOptions, serve

    return serve(
        ServerOptions(
            state_dir=state_dir, address=flower_address, port=port, password=password,
            session_metrics=session_metrics,
        )
    )  # fmt: skip
