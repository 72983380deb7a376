"""Keeping a long task's message invisible while it runs.

Redis hands an unacknowledged message out again after the visibility timeout, running or not. A task
that renews its own entry in kombu's index each second may take any time, and is still handed out
again soon after its worker died. This touches kombu's internals (transport/redis.py, `unacked_index`):
here and nowhere else, with a test.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis
    from celery import Task


def renew(task: Task[..., Any], broker: redis.Redis | None) -> None:
    """Push the running task's redelivery into the future; does nothing outside of a worker.

    ``broker`` is None where the queues are not in Redis: RabbitMQ hands a message out again when its worker's
    connection ends, and not before.
    """
    if broker is None or not task.request.id:
        return
    tag = (task.request.properties or {}).get("delivery_tag")
    if tag is not None:
        broker.zadd("unacked_index", {tag: time.time()}, xx=True)
