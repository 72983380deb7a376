"""`seamark run`: replicate one directory to one secondary, with everything that this needs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from replication.errors import ExitCode, SeamarkError, UsageError
from replication.gluster.address import parse_address
from replication.quantities import DeleteLimit, Duration, Timetable
from replication.remote.target import parse_target
from replication.secondary.filters import Filters
from replication.session import default_state_dir
from scheduler.nesting import check_nesting
from scheduler.options import CHANGE_DETECTORS, SYNC_METHODS, RunOptions
from seamark.commands.servers import configured, server_options
from seamark.commands.shared import Quantity, ip_address, jobs_option, primary_of, way_options
from seamark.logs import run_log, setup_logging
from seamark.progress import make_display
from tasks.servers import choose

if TYPE_CHECKING:
    from collections.abc import Callable

FLOWER_PORT = 5555


class FlowerCommand(click.Command):
    """`--flower` may stand before a path: only a number after it is its port."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for at, word in enumerate(args):
            if word == "--":
                break
            if word == "--flower" and not (at + 1 < len(args) and args[at + 1].isdecimal()):
                args[at] = f"--flower={FLOWER_PORT}"
        return super().parse_args(ctx, args)


class RunCommand(FlowerCommand):
    """`--include` and `--exclude` are rules as `--filter` gives them: what counts is the order of all."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        found: list[str] = []
        words = iter(args)
        for word in words:
            option, equals, value = word.partition("=")
            if option in _RULES and (equals or (value := next(words, ""))):
                found.append(f"--filter={_RULES[option]} {value}")
            else:
                found.append(word)
            if word == "--":
                found += words
        args[:] = found
        return super().parse_args(ctx, args)


_RULES = {"--include": "+", "--exclude": "-"}


class Rule(click.ParamType[str]):
    """A filter rule."""

    name = "rule"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        try:
            Filters([value])
        except ValueError as error:
            self.fail(str(error))
        return str(value)


flower_option = click.option(
    "--flower",
    "flower_port",
    is_flag=False,
    flag_value=FLOWER_PORT,
    type=click.IntRange(1, 65535),
    metavar="[PORT]",
    help=f"Show sessions and tasks on http://127.0.0.1:PORT, behind a password (without PORT: {FLOWER_PORT}).",
)


def address_option(name: str) -> Callable[..., Any]:
    """Where Flower listens."""
    return click.option(
        name,
        "flower_address",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        callback=ip_address,
        help="Where Flower listens. It speaks HTTP: beyond this host put TLS before it.",
    )


@click.command(cls=RunCommand, no_args_is_help=True)
@click.argument("primary", type=click.Path(path_type=str))
@click.argument("secondary", type=str)
@click.option("--once", is_flag=True, help="End when all that existed at the start is on the secondary.")
@click.option(
    "--timeout",
    "timeout_s",
    type=Quantity(Duration, above_zero=True),
    metavar="DURATION",
    help="With --once: end with exit code 5 when it takes longer (90, 30m, 2h); the next run goes on from there.",
)
@click.option(
    "--sync-method",
    type=click.Choice(SYNC_METHODS),
    default="auto",
    show_default=True,
    help="How data travels; auto decides for each file.",
)
@jobs_option
@click.option(
    "--bwlimit",
    "bandwidth",
    type=Quantity(Timetable),
    metavar="RATE",
    help='The most that is sent a second: 10M, "08:00,1M 19:00,off", off. Like the next five, kept for later runs.',
)
@click.option("--compress/--no-compress", default=None, help="Compress content on its way, or never.")
@click.option(
    "--filter",
    "filters",
    type=Rule(),
    multiple=True,
    metavar="RULE",
    help="'- PATTERN' leaves out, '+ PATTERN' does not, as rsync's; the first that matches decides.",
)
@click.option("--include", metavar="PATTERN", expose_value=False, help="--filter '+ PATTERN'.")
@click.option("--exclude", metavar="PATTERN", expose_value=False, help="--filter '- PATTERN'.")
@click.option(
    "--max-delete",
    type=Quantity(DeleteLimit),
    metavar="N",
    help="When more names than that (or than 10%) are gone from the primary, delete nothing, and ask; off: no limit.",
)
@way_options("secondary")
@click.option(
    "--change-detector",
    type=click.Choice(CHANGE_DETECTORS),
    default="auto",
    show_default=True,
    help="How changes are noticed: fanotify needs privileges, scan nothing.",
)
@click.option("--adopt", is_flag=True, help="Take over a secondary that is not empty; right data stays.")
@click.option("--name", metavar="NAME", help="Name of the session; by default made from both paths.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=str),
    envvar="SEAMARK_STATE_DIR",
    metavar="DIR",
    help="Where sessions are kept. [default: /var/lib/seamark for root, else ~/.local/state/seamark]",
)
@server_options
@flower_option
@address_option("--flower-address")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and touch nothing.")
@click.option(
    "-P", "--progress/--no-progress", default=None, help="Show how far it is (--no-progress: only warnings)."
)
@click.option("--log-json", is_flag=True, help="One JSON object a line on standard output.")
def run(**words: Any) -> int:
    """Replicate PRIMARY, a directory or gluster://HOST/VOLUME[/SUBDIR], to SECONDARY, until told to stop.

    SECONDARY is a directory, [user@]host:/path, or gluster://[USER@]HOST/VOLUME[/SUBDIR], a volume that HOST mounts.
    """
    options = _options(**words)
    with make_display(options, sys.stderr, sys.stdout) as display:
        try:
            silent = options.progress is False and not options.log_json
            setup_logging(display, None if options.dry_run else run_log(options), silent=silent)
            choose(options.servers)
            # What takes long to load is loaded only here: usage errors are quick
            from scheduler.opening import run as run_session
            from scheduler.server_check import check_servers

            if options.servers is not None and not options.dry_run:
                check_servers(options.servers)
            code: int = run_session(options, display.update)
        except SeamarkError as error:
            display.error(error.message, error.exit_code)
            raise
        except Exception as error:
            display.error(f"unexpected {type(error).__name__}: {error}", ExitCode.ERROR)
            raise
        display.summary(code)
    return code


def _options(
    primary: str,
    secondary: str,
    state_dir: str | None,
    identity: str | None,
    broker: str | None,
    redis: str | None,
    bandwidth: Timetable | None,
    compress: bool | None,
    filters: tuple[str, ...],
    max_delete: DeleteLimit | None,
    **rest: Any,
) -> RunOptions:
    """The command line as RunOptions. Raises UsageError for what can be seen to be wrong by itself."""
    if rest["timeout_s"] is not None and not rest["once"]:
        raise UsageError("--timeout is for --once: a run without it ends when it is told to")
    if identity is not None and not os.path.isfile(identity):
        raise UsageError(f"--identity {identity}: no such file")
    if rest["name"] is not None:
        from pathlib import Path

        from replication.session import SessionDir

        SessionDir(Path("/"), rest["name"])
    target = parse_target(secondary)
    state_dir = os.path.abspath(state_dir or default_state_dir())
    primary = primary_of(primary)
    if parse_address(primary) is None:
        check_nesting(os.fsencode(primary), target, state_dir)
    return RunOptions(
        primary=os.fsencode(primary),
        secondary=str(target),
        state_dir=state_dir,
        identity=None if identity is None else os.path.abspath(identity),
        servers=configured(broker, redis),
        settings={
            name: value
            for name, value in (
                ("bandwidth", bandwidth),
                ("compression", None if compress is None else "on" if compress else "off"),
                ("filters", filters or None),
                ("max_delete", max_delete),
            )
            if value is not None
        },
        **rest,
    )
