"""What a session leaves on servers that it shared with others: its keys and its queues, deleted with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis
from kombu.exceptions import OperationalError

from replication.addresses import shown
from replication.errors import TemporaryError
from replication.session import node_name
from scheduler.server_check import check_servers
from tasks import queues
from tasks.app import servers, use
from tasks.canvas import VERIFY, data_queue, data_queues
from tasks.ledger import Ledger, connect
from tasks.servers import from_json

if TYPE_CHECKING:
    from replication.session import SessionDir

_PATIENCE_S = 5.0


def forget_on_servers(place: SessionDir) -> None:
    """Delete what a session that has ended has there. A Redis of its own that is gone took everything with it.

    Raises SeamarkError when a server is away, or does not let us in: what is there expires, or does no harm.
    """
    try:
        used = from_json(place.servers.read_bytes())
    except OSError:
        return
    if used.redis_url.startswith("redis+socket://") and used.are_one:
        return
    state = place.state()
    if state is None:
        return
    check_servers(used, _PATIENCE_S)
    use(used)
    try:
        Ledger(connect(used, _PATIENCE_S), state.instance).erase()
        queues.remove(_queues(place.name, state.instance))
    except (redis.RedisError, OperationalError) as error:
        raise TemporaryError(f"{shown(servers().redis_url)}: {error}") from None


def _queues(name: str, instance: str) -> list[str]:
    """Those of a session that ran on this node; a fleet's own (SEAMARK_FLEET) serves others as well."""
    ours = f"{name}.{instance}"
    node = f"{node_name()}.{ours}"
    return [
        f"control.{node}",
        *data_queues(ours),
        data_queue(VERIFY, ours),
        f"data.{node}",
        f"alive.control.{node}",
        f"alive.data.{node}",
    ]
