"""One role of a session on the primary's node, under a supervisor of one's own: the app of `celery -A scheduler.roles …`.

SEAMARK_SESSION names the session, SEAMARK_STATE_DIR where it is; which servers are in use stands in its directory,
where the monitor (`--without ROLE`) keeps it. A worker is what it consumes: the node's control queue, or its queues of
data. `seamark roles NAME` prints the whole commands.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Never

from celery import signals
from celery.platforms import SecurityWarning

from replication.errors import SeamarkError, UsageError
from replication.session import state_dir_of_this_process
from scheduler import services
from scheduler.alone import enter, follow_servers
from scheduler.jobs import beat_schedule
from tasks import trace
from tasks.app import app
from tasks.canvas import alive_queue, control_queue, home_queue

__all__ = ["app"]

_QUIET = ("celery", "kombu", "amqp", "paramiko")  # what they fail at reaches us, and is told in our own words


def _fail(error: SeamarkError) -> Never:
    """One line and an exit code; Celery would show a traceback of what it could not load."""
    sys.stderr.write(f"seamark: {error.message}\n")
    sys.stderr.flush()
    os._exit(error.exit_code)


def _log_to_stderr(**_: object) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(trace.Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _worker(sender: str, instance: Any, **_: object) -> None:
    consumed = set(instance.app.amqp.queues.consume_from)
    found = [
        name
        for name, queue in (("control", control_queue()), ("data", home_queue()))
        if {queue, alive_queue(name)} <= consumed
    ]
    if len(found) != 1:
        _fail(
            UsageError(
                f"worker {sender}: 'seamark roles {_session}' says which queues it has to consume, with -Q"
            )
        )
    services.begin_worker(found[0], _session, 0.0)
    signals.heartbeat_sent.connect(lambda **_: follow_servers(), weak=False)


def _beat(**_: object) -> None:
    services.begin_beat(_session)
    signals.after_task_publish.connect(lambda **_: follow_servers(), weak=False)


try:
    _session = enter(Path(state_dir_of_this_process()), os.environ.get("SEAMARK_SESSION", "")).name
except SeamarkError as _error:
    _fail(_error)

# Celery warns of root because of pickle, which is not accepted here; root reads all of a volume.
warnings.filterwarnings("ignore", category=SecurityWarning)
app.conf.beat_scheduler = services.SCHEDULER
app.conf.beat_schedule = beat_schedule([_session])
signals.setup_logging.connect(_log_to_stderr)
signals.celeryd_after_setup.connect(_worker)
signals.beat_init.connect(_beat)
