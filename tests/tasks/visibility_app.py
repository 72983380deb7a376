"""A worker of its own for test_visibility: a task longer than the visibility timeout."""

from __future__ import annotations

import os
import time

from celery import Celery

from tasks.ledger import connect
from tasks.visibility import renew

URL = os.environ["SEAMARK_BROKER"]
app = Celery("visibility", broker=URL)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={
        "visibility_timeout": 2,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
    broker_connection_retry_on_startup=True,
)


@app.task(bind=True, name="long")
def long(self, *, renewing):
    client = connect(URL)
    client.incr(f"started:{renewing}")
    for _ in range(16):
        time.sleep(0.5)
        if renewing:
            renew(self, client)
    client.set(f"ended:{renewing}", 1)
