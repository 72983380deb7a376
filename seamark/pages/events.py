"""What Flower learns of tasks: the work, and not each question of beat whether there is some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from flower.events import Events
from tornado.ioloop import IOLoop

if TYPE_CHECKING:
    from celery import Celery


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
