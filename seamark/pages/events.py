"""What Flower learns of tasks: the work, and not each question of beat whether there is some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import flower.events
from celery.events.receiver import EventReceiver
from flower.events import Events
from tornado.ioloop import IOLoop

from tasks.refusals import refuse, shown

if TYPE_CHECKING:
    from celery import Celery


class _Receiver(EventReceiver):
    """Events as workers send them; Celery's own takes unsigned ones as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.accept = {self.app.conf.event_serializer}

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        refuse(f"an event: {shown(exc)}")
        message.ack()


flower.events.EventReceiver = _Receiver  # the name by which Flower makes its own


class QuietEvents(Events):
    """Without tasks that send no events of their own: that they were sent would be all that is ever known of them."""

    @classmethod
    def of(cls, app: Celery, options: Any) -> Self:
        """As Flower would make its own from its options."""
        return cls(
            app, io_loop=IOLoop.current(), db=options.db, persistent=options.persistent,
            state_save_interval=options.state_save_interval, enable_events=options.enable_events,
            max_workers_in_memory=options.max_workers, max_tasks_in_memory=options.max_tasks,
        )  # fmt: skip

    def on_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "task-sent":
            task = self.capp.tasks.get(event.get("name"))
            if task is not None and not task.send_events:
                return
        super().on_event(event)
