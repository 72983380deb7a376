"""The Celery application of the fleet, and the servers that it uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Celery

import celeryconfig
from tasks import signing
from tasks.fleet import Member
from tasks.queues import FleetAMQP

if TYPE_CHECKING:
    from tasks.servers import Servers

app = Celery(
    "seamark", amqp=FleetAMQP, task_cls="tasks.arguments:Task", control="tasks.consumer:CheckingControl"
)
app.config_from_object("celeryconfig")
app.steps["consumer"].add(Member)
_servers = celeryconfig.SERVERS
signing.register(_servers.message_key)


def use(servers: Servers) -> None:
    """These servers from now on, in this process and those that it forks."""
    global _servers
    _servers = servers
    signing.register(servers.message_key)
    app.conf.update(servers.celery_settings())


def servers() -> Servers:
    """Those in use: what ``use`` was told last, else what the environment says."""
    return _servers
