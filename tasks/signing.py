"""Messages that are signed: JSON under an HMAC by a key that only the fleet has. An option (message_key_file).

Signed is whatever goes through the broker: tasks, results, events and remote control. A worker that has a key accepts
nothing else. Celery signs by certificates (its serializer "auth"), which somebody has to make, spread and renew, and signs a
task's arguments only: which task they are for stands in the headers, which anybody can change. So the name and the id
of a task are put among what is signed, and compared when it is to run.

The same message may come again, from whoever could read it: a task may run twice anyway, and what is of an older epoch is
refused. So no clocks are compared here.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import kombu.serialization
import kombu.utils.json

if TYPE_CHECKING:
    from celery import Celery

NAME = "seamark-signed"
CONTENT_TYPE = "application/x-seamark-signed"
_DIGEST = "sha256"
_MAC_LENGTH = 64
_SEAL = "seamark_seal"
_json: Any = kombu.utils.json  # untyped, both
_serialization: Any = kombu.serialization


class WrongSignature(ValueError):
    """It was not signed by this key, or changed since."""


def register(key: bytes | None) -> None:
    """Have this process, and those that it forks, sign and check by this key. None: by none."""
    if key is None:
        if NAME in _serialization.registry.name_to_type:
            _serialization.unregister(NAME)
        return

    def mac(text: bytes) -> str:
        return hmac.new(key, text, _DIGEST).hexdigest()

    def encode(data: Any) -> str:
        text: str = _json.dumps(data)
        return mac(text.encode()) + text

    def decode(signed: Any) -> Any:
        text = signed.encode() if isinstance(signed, str) else bytes(signed)
        if not hmac.compare_digest(mac(text[_MAC_LENGTH:]).encode(), text[:_MAC_LENGTH]):
            raise WrongSignature("it is signed by another key, or was changed")
        return _json.loads(text[_MAC_LENGTH:])

    _serialization.register(NAME, encode, decode, CONTENT_TYPE, "utf-8")


def celery_settings(key: bytes | None) -> dict[str, Any]:
    """What is sent, and what is accepted. JSON only: it is read by people, and never runs code when it is loaded."""
    name = "json" if key is None else NAME
    return {
        "task_serializer": name,
        "result_serializer": name,
        "event_serializer": name,
        "accept_content": [name],
        "result_accept_content": [name],
    }


def is_on(app: Celery) -> bool:
    return bool(app.conf.task_serializer == NAME)


def seal(app: Celery, headers: dict[str, Any], body: tuple[Any, Any, dict[str, Any]]) -> None:
    """Put among what is signed which task it is for."""
    if is_on(app):
        body[2][_SEAL] = [headers["task"], headers["id"]]


def moved(app: Celery, name: str, request: Any) -> str | None:
    """Why what is signed is not for the task that is to run; None: it is."""
    if not is_on(app) or getattr(request, _SEAL, None) == [name, request.id]:
        return None
    return "it is signed, but for another task"
