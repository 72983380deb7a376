"""Queues: how they are declared on each kind of broker, how full they are, and how they are removed.

Redis has a queue while something waits in it. RabbitMQ keeps one until it is deleted, so each is given a time
after which it goes when nobody consumes it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.amqp import AMQP, Queues
from kombu.entity import Queue

from tasks import signing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# RabbitMQ, in ms. Nothing is lost with a queue: the sweeper submits again what the ledger says is not done.
_UNUSED_MS = 24 * 3600 * 1000
_LONGEST_MS = (
    7 * 24 * 3600 * 1000
)  # until a message that is not acknowledged is taken for abandoned; 30 min by default

_DELAYED = "celery.worker.consumer.delayed_delivery:DelayedDelivery"


@signals.celeryd_init.connect
def _without_delays(**_: object) -> None:
    """Celery makes 28 queues on RabbitMQ for tasks with a countdown; there are none here, and each costs memory."""
    from celery.worker.consumer import Consumer

    steps = Consumer.Blueprint.default_steps
    Consumer.Blueprint.default_steps = [step for step in steps if step != _DELAYED]


class FleetQueues(Queues):
    """Queues that are made when they are first named."""

    def new_missing(self, name: str) -> Any:
        if self.create_missing_queue_type != "quorum":
            return super().new_missing(name)
        arguments = {"x-queue-type": "quorum", "x-expires": _UNUSED_MS, "x-consumer-timeout": _LONGEST_MS}
        # In the exchange of all of them: one of its own would stay behind when the queue has gone.
        make: Any = Queue  # untyped
        return make(name, self.default_exchange, name, queue_arguments=arguments)


class FleetAMQP(AMQP):
    """Celery's own, with queues as above; where messages are signed, the task that one is for is signed with it."""

    queues_cls = FleetQueues

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **kwargs)
        signing.seal(self.app, message.headers, message.body)
        return message


def lengths(names: Iterable[str]) -> dict[str, int]:
    """How many messages wait in each queue; what was handed out already does not count. Raises kombu's errors."""
    from tasks.app import app

    def length(name: str, channel: Any) -> int:
        return int(channel.queue_declare(name, passive=True).message_count)

    with app.connection_for_read() as connection:
        return {name: _on_a_channel(connection, partial(length, name)) or 0 for name in names}


def remove(names: Iterable[str]) -> None:
    """Delete queues with all that waits in them. Those that do not exist are no error. Raises kombu's errors."""
    from tasks.app import app

    def delete(name: str, channel: Any) -> None:
        queue = app.amqp.queues[name](channel)
        if connection.transport.driver_type == "redis":
            queue.declare()  # it deletes only bindings that it knows of
        queue.delete()

    with app.connection_for_write() as connection:
        for name in names:
            _on_a_channel(connection, partial(delete, name))


def _on_a_channel(connection: Any, ask: Callable[[Any], Any]) -> Any:
    """What ``ask`` says; None when there is no such queue. A refusal ends its channel, so each has one of its own."""
    channel = connection.channel()
    try:
        return ask(channel)
    except connection.channel_errors as error:
        if str(getattr(error, "reply_code", "")) != "404":
            raise
        return None
    finally:
        channel.close()
