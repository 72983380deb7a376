"""The pages of the sessions within Flower, and their parts, which a page asks for again and again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prometheus_client
from flower.views import BaseHandler, monitor
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from tornado import web
from tornado.ioloop import IOLoop

from replication.errors import SeamarkError
from replication.session import SessionDir, known_session
from scheduler import history
from seamark.pages import tasks
from seamark.pages.charts import SPANS, Charts, charts, default_span
from seamark.pages.view import cards, detail
from seamark.progress import text

if TYPE_CHECKING:
    from collections.abc import Callable

_TASKS_SHOWN = 15


class _Page(BaseHandler):
    """A page of ours. What it shows is read in a thread: a monitor that hangs holds up nobody else."""

    @property
    def state_dir(self) -> str:
        return str(self.application.settings["state_dir"])

    async def read(self, what: Callable[..., Any], *words: Any) -> Any:
        return await IOLoop.current().run_in_executor(None, what, *words)

    def show(self, template: str, **words: Any) -> None:
        self.render(
            template, text=text, tasks_url=tasks.tasks_url, clock=time.strftime("%H:%M:%S %Z"), **words
        )


class Overview(_Page):
    """All sessions."""

    template = "sessions.html"

    @web.authenticated
    async def get(self) -> None:
        self.show(self.template, cards=await self.read(cards, self.state_dir))


class OverviewPart(Overview):
    """What of them is live."""

    template = "sessions_part.html"


class _OfSession(_Page):
    """What is about one session."""

    def place(self, name: str) -> SessionDir:
        try:
            return known_session(Path(self.state_dir), name)
        except SeamarkError as error:
            raise web.HTTPError(404, error.message) from None

    async def charts(self, place: SessionDir) -> Charts:
        """Over the span that was asked for."""
        samples = await self.read(history.read, place)
        asked = self.get_query_argument("span", "")
        return charts(samples, asked if asked in SPANS else default_span(samples))

    def recent(self, place: SessionDir) -> list[tasks.TaskRow]:
        return tasks.recent(self.application.events, place.name, _TASKS_SHOWN)


class OneSession(_OfSession):
    """One session in full."""

    @web.authenticated
    async def get(self, name: str) -> None:
        place = self.place(name)
        self.show(
            "session.html", name=name, it=await self.read(detail, self.state_dir, name), spans=SPANS,
            charts=await self.charts(place), tasks=self.recent(place),
        )  # fmt: skip


class NumbersPart(_OfSession):
    """Its numbers, and its failures."""

    template = "session_part.html"

    @web.authenticated
    async def get(self, name: str) -> None:
        self.place(name)
        self.show(self.template, it=await self.read(detail, self.state_dir, name))


class AboutPart(NumbersPart):
    """Its checkpoints, and what else is known of it."""

    template = "about_part.html"


class ChartsPart(_OfSession):
    """Its plots."""

    @web.authenticated
    async def get(self, name: str) -> None:
        self.show("charts_part.html", charts=await self.charts(self.place(name)))


class TasksPart(_OfSession):
    """Its tasks, as far as Flower knows of them."""

    @web.authenticated
    async def get(self, name: str) -> None:
        self.show("tasks_part.html", name=name, tasks=self.recent(self.place(name)))


class Metrics(monitor.Metrics):
    """Flower's metrics, and those of the sessions unless the monitor answers for them."""

    async def get(self) -> None:
        self.application.purge_offline_worker_metrics()
        text = await IOLoop.current().run_in_executor(None, prometheus_client.generate_latest)
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.write(text)


_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]*)"  # what a session may be called (replication/session.py)
PAGES = [
    web.url(r"/sessions", Overview, name="sessions"),
    web.url(r"/sessions/part", OverviewPart, name="sessions_part"),
    web.url(rf"/session/{_NAME}", OneSession, name="session"),
    web.url(rf"/session/{_NAME}/numbers", NumbersPart, name="session_numbers"),
    web.url(rf"/session/{_NAME}/about", AboutPart, name="session_about"),
    web.url(rf"/session/{_NAME}/charts", ChartsPart, name="session_charts"),
    web.url(rf"/session/{_NAME}/tasks", TasksPart, name="session_tasks"),
    web.url(r"/metrics", Metrics),
]
