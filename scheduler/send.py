"""Sending what beat sends as well: for whoever does not want to wait for its next time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from celery import Signature

log = logging.getLogger("seamark.run")


def send(signature: Signature) -> None:
    """A broker that is away is no error: beat sends it again before long."""
    try:
        signature.apply_async()
    except OperationalError as error:
        log.debug("not sent: %s", error)
