"""--broker and --redis: which servers a command is to use, by its options, the environment, or the node's file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from replication.addresses import has_password
from replication.errors import UsageError
from replication.server_settings import ServerSettings
from tasks.servers import from_environment, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from tasks.servers import Servers


def _no_password(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Everybody on the host can read a command line."""
    if value and parameter.name and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
        refuse_password(f"--{parameter.name}", parameter.name, value)
    return value


def refuse_password(what: str, name: str, value: str) -> None:
    """Raises UsageError for an address with a password in it, which others on this host could read (ps)."""
    if has_password(value):
        raise UsageError(
            f"{what}: a password on the command line can be read by everybody on this host (ps); give the address "
            f"without it, and a file with it as {name}_password_file or SEAMARK_{name.upper()}_PASSWORD_FILE"
        )


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--broker and --redis."""
    broker = click.option(
        "--broker", envvar="SEAMARK_BROKER", metavar="URL", callback=_no_password,
        help="Queues are there, instead of in a Redis of its own: redis://, rediss://, sentinel://, amqp://, amqps://.",
    )  # fmt: skip
    redis = click.option(
        "--redis", envvar="SEAMARK_REDIS", metavar="URL", callback=_no_password,
        help="The Redis of ledgers and results, where that is not the broker.",
    )  # fmt: skip
    return broker(redis(command))


def configured(broker: str | None, redis: str | None, base: ServerSettings | None = None) -> Servers | None:
    """What options, then the environment, then ``base`` say. None: a Redis of its own. Raises UsageError."""
    settings = from_environment(base)
    said = {name: url for name, url in (("broker", broker), ("redis", redis)) if url}
    settings = msgspec.structs.replace(settings, **said)
    if settings.broker is None:
        if settings.redis is not None:
            raise UsageError("redis is given, but no broker: give both, or the one Redis as broker")
        return None
    return resolve(settings)
