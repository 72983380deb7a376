"""The command line: every command, and how each of them ends."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import click

import seamark
from replication.errors import ExitCode, SeamarkError
from seamark.commands.changelog import changelog
from seamark.commands.checkpoint import checkpoint
from seamark.commands.completion import completion
from seamark.commands.config import config, configcheck
from seamark.commands.create import create
from seamark.commands.delete import delete
from seamark.commands.deletions import deletions
from seamark.commands.doctor import doctor
from seamark.commands.failback import failback
from seamark.commands.failover import failover
from seamark.commands.failures import failures
from seamark.commands.flower import flower
from seamark.commands.install_units import install_units
from seamark.commands.life import pause, resume, start, stop
from seamark.commands.list import list_sessions
from seamark.commands.logs import logs
from seamark.commands.monitor import monitor
from seamark.commands.push_pem import push_pem
from seamark.commands.recover import recover
from seamark.commands.resync import resync
from seamark.commands.roles import agent, roles
from seamark.commands.run import run
from seamark.commands.status import status
from seamark.commands.verify import verify
from seamark.commands.version import version
from seamark.commands.worker import worker
from seamark.commands.workers import workers
from seamark.logs import log_path

log = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(seamark.__version__, "-V", "--version", message="seamark %(version)s")
def cli() -> None:
    """Seamark keeps a copy of a directory somewhere else, and says up to when it is complete."""


for command in (
    run, create, start, stop, pause, resume, list_sessions, status, checkpoint, config, configcheck, delete, recover, push_pem,
    doctor, logs, failures, failover, failback, resync, verify, deletions, monitor, agent, roles, worker, workers, flower, install_units, changelog,
    completion, version,
):  # fmt: skip
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. An error becomes one line on standard error."""
    try:
        result = cli.main(args=arguments, prog_name="seamark", standalone_mode=False)
        sys.stdout.flush()
    except SeamarkError as error:
        return _complain(error.message, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.UsageError as error:
        return _complain(f"{error.format_message()} (see {_help_of(error)} --help)", ExitCode.USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), ExitCode.ERROR)
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.ERROR
    except Exception as error:
        return _bug(error)
    return result if isinstance(result, int) else ExitCode.OK


def _complain(message: str, code: ExitCode) -> ExitCode:
    line = " ".join(message.split("\n"))
    print(f"seamark: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr)
    return code


def _help_of(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx else "seamark"


def _bug(error: Exception) -> ExitCode:
    """An error that nobody foresaw: its details go to the log, one line to the person."""
    if os.environ.get("SEAMARK_DEBUG"):
        raise error
    what = f"unexpected {type(error).__name__}: {error}"
    path = log_path()
    if path is None:
        return _complain(f"{what}; set SEAMARK_DEBUG=1 to see where", ExitCode.ERROR)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            record = log.makeRecord(log.name, logging.CRITICAL, __file__, 0, what, (), sys.exc_info())
            handler.handle(record)
    return _complain(f"{what}; details are in {path}", ExitCode.ERROR)
