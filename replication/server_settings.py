"""What is set for a node, and concerns all of its sessions: the servers that its fleet shares, and limits."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Struct

from replication.quantities import NO_LIMIT, Timetable
from replication.setting_tables import about


class TlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the servers of rediss://, amqps:// and of Sentinel over TLS are known, and we to them."""

    ca: Annotated[
        str | None, about("certificates by which servers are known; unset: the system's", restart=True)
    ] = None
    cert: Annotated[str | None, about("our own certificate, where a server asks for one", restart=True)] = (
        None
    )
    key: Annotated[str | None, about("its private key", restart=True)] = None
    check_hostname: Annotated[
        bool, about("whether a server's certificate has to name the host that was asked for", restart=True)
    ] = True


class SentinelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For sentinel://HOST:26379;sentinel://HOST:26379 as broker or redis."""

    master: Annotated[
        str, about("the name by which the sentinels know the Redis that is meant", restart=True)
    ] = "mymaster"
    password_file: Annotated[
        str | None, about("a file with the password of the sentinels themselves", restart=True)
    ] = None
    tls: Annotated[bool, about("whether sentinels and Redis speak TLS", restart=True)] = False


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the queues are, and where ledgers and results are. Each key is also read from the environment."""

    broker: Annotated[
        str | None,
        about(
            "where the queues are: redis://, rediss://, sentinel://, amqp:// or amqps://; unset: a Redis of its own",
            restart=True,
        ),
    ] = None
    broker_password_file: Annotated[str | None, about("a file with the broker's password", restart=True)] = (
        None
    )
    redis: Annotated[
        str | None,
        about("the Redis of ledgers and results; unset: the broker, where that is a Redis", restart=True),
    ] = None
    redis_password_file: Annotated[str | None, about("a file with its password", restart=True)] = None
    message_key_file: Annotated[
        str | None,
        about(
            "a file with a random line of 32 characters or more, the same on all hosts: messages are signed by it, "
            "and no others accepted",
            restart=True,
        ),
    ] = None
    tls: TlsSettings = msgspec.field(default_factory=TlsSettings)
    sentinel: SentinelSettings = msgspec.field(default_factory=SentinelSettings)


class NodeSettings(ServerSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What concerns all sessions of a node."""

    fleet_bandwidth: Annotated[
        Timetable,
        about("the most that all sessions and workers of this node's broker send a second together"),
    ] = NO_LIMIT
