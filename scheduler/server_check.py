"""Whether the broker and the Redis of the ledgers are there, let us in, and are such that nothing is lost by them.

What is wrong is one line, with the address but without its password, and an error by what helps: TemporaryError
for what may pass, ServerError for what somebody has to mend.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from replication.addresses import shown
from replication.errors import SeamarkError, TemporaryError, UsageError
from tasks.servers import of_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tasks.servers import Servers

TIMEOUT_S = 10.0


class ServerError(SeamarkError):
    """A broker or a Redis that does not let us in, or cannot be worked with."""


def check_broker(url: str, timeout: float = TIMEOUT_S) -> None:
    """``check_servers`` of one Redis that is everything."""
    check_servers(of_url(url), timeout)


def check_servers(servers: Servers, timeout: float = TIMEOUT_S) -> None:
    """Ask each server. Raises TemporaryError, ServerError, UsageError."""
    if not servers.are_one:
        check_broker_of(servers, timeout)
    with _words("broker" if servers.are_one else "redis", servers.redis_url, timeout):
        _check_redis(servers.client(timeout))


def check_broker_of(servers: Servers, timeout: float = TIMEOUT_S) -> None:
    """Ask the broker. Raises TemporaryError, ServerError, UsageError."""
    if not servers.broker_is_redis:
        _check_amqp(servers, timeout)
        return
    with _words("broker", servers.broker, timeout):
        _check_redis(servers.broker_client(timeout))


def _check_redis(client: redis.Redis) -> None:
    """Raises ServerError; what redis-py raises is put into words by whoever calls."""
    with client:
        client.ping()
        found: dict[str, Any] = {**client.info("replication"), **client.info("memory")}
        if found.get("role") == "slave":
            raise ServerError("it is a replica, which cannot be written: give its master, or the sentinels")
        policy = found.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise ServerError(
                f"its maxmemory-policy is {policy}: it would drop work when its memory is full; set noeviction"
            )


def _check_amqp(servers: Servers, timeout: float = TIMEOUT_S) -> None:
    """Whether RabbitMQ lets us in. Raises TemporaryError, ServerError."""
    from amqp.exceptions import AccessRefused, NotAllowed
    from kombu.connection import Connection

    settings = servers.celery_settings()
    opened: Any = Connection  # untyped
    connection = opened(servers.broker, ssl=settings["broker_use_ssl"] or False, connect_timeout=timeout)
    try:
        with connection:
            connection.connect()
            connection.default_channel.basic_qos(0, 1, False)
    except AccessRefused as error:
        raise _server_error(servers.broker, f"it refuses this user or password ({_last(error)})") from None
    except NotAllowed as error:
        raise _server_error(
            servers.broker,
            f"it does not let this user into this virtual host, or has none of that name ({_last(error)})",
        ) from None
    except ssl.SSLError as error:
        raise _server_error(servers.broker, f"TLS: {_tls_words(error)}") from None
    except OSError as error:
        raise TemporaryError(f"broker {shown(servers.broker)}: {error.strerror or error}") from None
    except connection.connection_errors + connection.channel_errors as error:
        raise _server_error(servers.broker, _last(error)) from None


def _server_error(url: str, words: str) -> ServerError:
    return ServerError(f"broker {shown(url)}: {words}")


def _last(error: Exception) -> str:
    return str(getattr(error, "reply_text", "") or error)


@contextlib.contextmanager
def _words(what: str, url: str, timeout: float) -> Iterator[None]:
    """Put what goes wrong with a Redis into words."""
    import redis
    from redis.sentinel import MasterNotFoundError

    name = f"{what} {shown(url)}"
    try:
        yield
    except ServerError as error:
        raise ServerError(f"{name}: {error.message}") from None
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        wanted = any(words in str(error) for words in ("HELLO must be called", "Authentication required"))
        raise ServerError(f"{name}: {'it wants a password' if wanted else error}") from None
    except MasterNotFoundError as error:
        raise TemporaryError(f"{name}: {error}") from None
    except redis.ConnectionError as error:
        if (tls := _tls_error(error)) is not None:
            raise ServerError(f"{name}: TLS: {_tls_words(tls)}") from None
        raise TemporaryError(f"{name}: {error}") from None
    except redis.TimeoutError:
        raise TemporaryError(f"{name}: no answer within {timeout:g} s") from None
    except redis.RedisError as error:
        raise ServerError(f"{name}: {error}") from None


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS failure below an error, if that is what it is."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _tls_words(error: ssl.SSLError) -> str:
    """Without the place in OpenSSL's source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate will not do: {error.verify_message}"
    words = str(error.reason or error).replace("_", " ").lower()
    # TLS 1.3: whether it says why before it hangs up is a matter of microseconds.
    if "eof occurred" in words:
        return "the server ended the connection: it may want a certificate of ours (certificate required)"
    return words
