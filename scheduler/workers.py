"""Who works for the sessions of this host: the rows that workers keep in Redis, of all fleets that this host knows."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import redis

from replication.addresses import shown
from replication.errors import SeamarkError, TemporaryError
from replication.session import SessionDir, node_config, session_names
from replication.session_file import read_servers
from tasks import fleet
from tasks.ledger import connect
from tasks.servers import from_environment, from_json, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasks.servers import Servers

_PATIENCE_S = 5.0


def servers_of(state_dir: str) -> list[Servers]:
    """The servers in use here: of the environment or the node's file, and of sessions that run or ran."""
    found = {servers.redis_url: servers for servers in _servers_of(Path(state_dir))}
    return list(found.values())


def _servers_of(state_dir: Path) -> Iterator[Servers]:
    for name in session_names(state_dir):
        with contextlib.suppress(OSError, SeamarkError, msgspec.DecodeError):
            yield from_json(SessionDir(state_dir, name).servers.read_bytes())
    settings = from_environment(read_servers(node_config(state_dir)))
    if settings.broker is not None:
        yield resolve(settings)


def workers(state_dir: str) -> list[dict[str, Any]]:
    """Each worker of them, as `seamark workers --json` tells it. Raises TemporaryError when none of them answers."""
    found: dict[str, dict[str, Any]] = {}
    asked = servers_of(state_dir)
    failed: list[str] = []
    for servers in asked:
        try:
            found.update({told["worker"]: told for told in workers_of(servers)})
        except redis.RedisError as error:
            failed.append(f"redis {shown(servers.redis_url)}: {error}")
    if failed and len(failed) == len(asked):
        raise TemporaryError(failed[0])
    return [found[name] for name in sorted(found)]


def workers_of(servers: Servers) -> list[dict[str, Any]]:
    """Those of one fleet. Raises RedisError."""
    with connect(servers, _PATIENCE_S) as client:
        now = fleet.clock(client)
        return [_told(row, now) for row in fleet.rows(client)]


def _told(row: fleet.Row, now: float) -> dict[str, Any]:
    state = row.state(now)
    return {
        "worker": row.name, "host": row.host, "pid": row.pid, "role": row.role, "state": state,
        "sessions": list(row.sessions), "processes": row.processes, "now": list(row.now) if state != "silent" else [],
        "done": row.done, "since": row.since, "last_sign": row.at, "silent_s": round(max(0.0, now - row.at), 1),
        "rests": row.rests,
    }  # fmt: skip
