"""How a worker takes messages: what is no message of ours is refused, with one line, and never comes again.

Celery has a stack trace and the whole message for each of them in its log, and a message whose headers it did not expect
ends the worker, which then meets it again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from celery.app.control import Control
from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed
from kombu.pidbox import Mailbox, Node

from tasks.refusals import refuse, shown

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")  # of a task, and its id


def _why(error: Exception) -> str:
    if isinstance(error, ContentDisallowed):
        return "it is not signed, or no JSON"
    return shown(error)


class CheckingConsumer(Consumer):
    """Celery's own, with a line for what is refused."""

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        refuse(_why(exc))
        _drop(message)

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        refuse(_why(exc))
        _drop(message)

    def on_unknown_task(self, _body: Any, message: Any, exc: Exception) -> None:
        refuse(f"there is no task {shown(exc)}")
        _drop(message)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def received(message: Any) -> None:
            if (why := _odd(message.headers)) is not None:
                refuse(why)
                _drop(message)
                return
            try:
                handle(message)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                refuse(f"{type(error).__name__}: {shown(error)}")
                _drop(message)

        return received


def _odd(headers: Any) -> str | None:
    """What of a task's headers is not as ours are; None: nothing.

    A limit of time that is none takes a process of the pool for good, and ours have none; nor is any of ours to be done
    at a certain time, until which it would be kept here.
    """
    if not isinstance(headers, dict) or "task" not in headers:
        return "it names no task"
    texts: list[Any] = [headers.get(name) for name in ("task", "id")]
    maybe = [
        headers.get(name) for name in ("root_id", "parent_id", "group", "argsrepr", "kwargsrepr", "expires")
    ]
    if not all(isinstance(each, str) for each in [*texts, *(each for each in maybe if each is not None)]):
        return "its headers are not Celery's"
    if not all(_NAME.fullmatch(each) for each in texts):  # they stand in logs as they are
        return "its headers are not Celery's"
    if headers.get("eta") is not None or any(headers.get("timelimit") or ()):
        return "it is for another time, or has a limit of time"
    if type(headers.get("retries", 0)) is not int or headers.get("stamped_headers") or headers.get("stamps"):
        return "its headers are not ours"
    return None


def _drop(message: Any) -> None:
    """Not by ``reject``: of what needs no acknowledgement, as remote control, RabbitMQ takes none, and closes the channel."""
    if not message.acknowledged:
        message.ack()


class _Node(Node):
    """A worker's end of remote control."""

    def handle_message(self, body: Any, message: Any = None) -> Any:
        if not isinstance(body, dict):  # text goes past the signature
            return refuse("remote control with no command")
        inner: Any = super()  # untyped
        return inner.handle_message(body, message)


class _Mailbox(Mailbox):
    node_cls = _Node


class CheckingControl(Control):
    """Remote control, which accepts what tasks are accepted by."""

    Mailbox = _Mailbox
