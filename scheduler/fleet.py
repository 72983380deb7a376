"""What a node tells all workers of its broker: at the moment the bandwidth that they share.

The truth is the node's file; Redis, where workers read it, may forget it at any time.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

import redis

from replication.errors import SeamarkError
from replication.session_file import read_node
from tasks.bandwidth import publish_fleet_limit
from tasks.ledger import connect

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.servers import Servers

log = logging.getLogger("seamark.monitor")
_EVERY_S = 3.0
_PATIENCE_S = 0.5  # the monitor has other things to do than to wait for a Redis that hangs


class FleetSettings:
    """Keeps Redis told of what stands in the node's file."""

    def __init__(self, path: Path, servers: Servers) -> None:
        self._path = path
        self._redis = connect(servers, _PATIENCE_S)
        self._due = 0.0
        self._limit = ""
        self._wrong = ""

    def look(self) -> None:
        """Read the file and tell Redis, every few seconds. What is wrong with the file is said once, and changes nothing."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY_S
        try:
            limit = read_node(self._path).fleet_bandwidth
            self._limit, self._wrong = "" if limit.text == "off" else limit.text, ""
        except SeamarkError as error:
            if error.message != self._wrong:
                self._wrong = error.message
                log.error("%s", error.message)
        with contextlib.suppress(redis.RedisError):
            publish_fleet_limit(self._redis, self._limit)
