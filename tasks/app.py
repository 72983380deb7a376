"""The Celery application of the fleet."""

from __future__ import annotations

from celery import Celery

app = Celery("seamark")
app.config_from_object("celeryconfig")
