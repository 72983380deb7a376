"""Somebody who can write to the broker, and says what they like there: by kombu alone, with nothing of Seamark's."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import uuid

import kombu

SIGNED = "application/x-seamark-signed"


def sign(text: str, secret: str) -> str:
    """As docs/security.md has it."""
    key = hashlib.sha256(b"seamark messages\0" + secret.encode()).digest()
    return hmac.new(key, text.encode(), "sha256").hexdigest() + text


class BrokerWriter:
    def __init__(self, url):
        self._connection = kombu.Connection(url)
        self._producer = self._connection.Producer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.release()

    def raw(self, queue, body, *, content_type="application/json", headers=None, encoding="utf-8"):
        self._producer.publish(
            body, exchange="", routing_key=queue, content_type=content_type, content_encoding=encoding,
            headers={} if headers is None else headers, correlation_id=uuid.uuid4().hex,
        )  # fmt: skip

    def task(
        self, queue, name, args, kwargs, *, secret=None, sealed_for=None, content_type=None, headers=None
    ):
        """A task as Celery sends it; signed if there is a ``secret``."""
        task_id = uuid.uuid4().hex
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        if secret is not None:
            embed["seamark_seal"] = [sealed_for or name, task_id]
        text = json.dumps([args, kwargs, embed])
        body = text if secret is None else sign(text, secret)
        said = {
            "lang": "py", "task": name, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
            "argsrepr": "()", "kwargsrepr": "{}", "origin": "elsewhere", "ignore_result": True, **(headers or {}),
        }  # fmt: skip
        kind = content_type or ("application/json" if secret is None else SIGNED)
        self.raw(queue, body, content_type=kind, headers=said)

    def command(self, method, arguments=None, *, secret=None, body=None):
        """Remote control of all workers."""
        said = {
            "method": method, "arguments": arguments or {}, "destination": None, "pattern": None, "matcher": None,
        }  # fmt: skip
        text = json.dumps(said) if body is None else body
        exchange = kombu.Exchange("celery.pidbox", type="fanout", durable=False, delivery_mode="transient")
        self._producer.publish(
            text if secret is None else sign(text, secret), exchange=exchange, declare=[exchange], routing_key="",
            content_type="application/json" if secret is None else SIGNED, content_encoding="utf-8", headers={"clock": 1},
        )  # fmt: skip

    def event(self, kind, said, *, secret=None):
        """What a worker tells whoever listens; on a Redis."""
        text = json.dumps(
            {"type": kind, "clock": 1, "pid": 1, "utcoffset": 0, "timestamp": time.time(), **said}
        )
        exchange = kombu.Exchange("celeryev", type="fanout", delivery_mode="transient")
        self._producer.publish(
            text if secret is None else sign(text, secret), exchange=exchange, declare=[exchange],
            routing_key=kind.replace("-", "."), headers={"hostname": said["hostname"]}, content_encoding="utf-8",
            content_type="application/json" if secret is None else SIGNED,
        )  # fmt: skip


def control_queue(client) -> str:
    """The queue that the primary's node consumes."""
    (key,) = client.keys("_kombu.binding.control.*")
    return key.decode().removeprefix("_kombu.binding.")
