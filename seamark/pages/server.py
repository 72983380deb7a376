"""Flower as an application of ours: nothing is answered without the password, and our own pages come first."""

from __future__ import annotations

import base64
import hmac
import logging
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flower.app
import flower.options
import flower.urls
import prometheus_client
from tornado import template, web
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.netutil import bind_sockets

from replication.errors import SeamarkError
from scheduler.metrics import Sessions
from seamark.pages import handlers
from seamark.pages.events import QuietEvents
from seamark.pages.password import USER, flower_dir
from seamark.pages.tasks import shown_task
from tasks.app import app

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerRequest

log = logging.getLogger("seamark.flower")
HERE = Path(__file__).parent
_OPEN = "/healthcheck"  # says nothing but that it is up
_MOST_BODY = 1 << 20
_TASKS_KEPT = 5_000  # saving them takes a third of a second, in which nothing is answered
_SAVE_EVERY_MS = 60_000
_LEARN_EVERY_MS = 5_000
_INSPECT_MS = 4_000.0  # a worker whose process has much to do answers late
_COLUMNS = "name,uuid,kwargs,state,received,runtime,result,worker"

_LOCAL = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
# Flower's own pages hold a line of script, and its tables set styles.
_FLOWERS = f"{_LOCAL}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """One Flower. ``session_metrics``: whether /metrics has those of the sessions beside Flower's own."""

    state_dir: str
    address: str
    port: int
    password: str
    session_metrics: bool = True


class _Headers(web.OutputTransform):
    """What each answer says to the browser of what it may do with it."""

    def __init__(self, request: HTTPServerRequest) -> None:
        super().__init__(request)
        self._policy = _LOCAL if request.path.startswith("/session") else _FLOWERS

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        headers["Content-Security-Policy"] = self._policy
        headers["Referrer-Policy"] = "same-origin"
        headers["X-Content-Type-Options"] = "nosniff"
        if not headers.get("Content-Type", "").startswith(
            ("text/css", "text/javascript", "application/javascript")
        ):
            headers["Cache-Control"] = "no-store"
        return status_code, headers, chunk


class _Loader(template.Loader):
    """Flower's templates and ours. Its navigation bar leads to ours too."""

    def _create_template(self, name: str) -> template.Template:
        ours = HERE / "templates" / name
        if ours.is_file():
            return template.Template(ours.read_bytes(), name=name, loader=self)
        source = (Path(self.root) / name).read_text(encoding="utf-8")
        for where, what in _ADDED.get(name, ()):
            source = re.sub(where, lambda found, what=what: found[0] + what, source, count=1)  # type: ignore[misc]
        return template.Template(source, name=name, loader=self)


_TAB = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'sessions' %} active{% end %}" href="{{ reverse_url('sessions') }}"
            {% if active_tab == 'sessions' %}aria-current="page"{% end %}>Sessions</a>
        </li>"""
_LOOK = """
    <link href="/seamark/seamark.css" rel="stylesheet">"""
_ADDED = {
    "navbar.html": [(r'<ul class="app-nav navbar-nav">', _TAB)],
    "base.html": [(r"<link href=[^\n]*flower\.css[^\n]*>", _LOOK)],
}


class _Refused(web.RequestHandler):
    """Whoever has not the password is asked for it, whatever was asked for."""

    def check_xsrf_cookie(self) -> None:
        pass

    def prepare(self) -> None:
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="Seamark", charset="UTF-8"')
        self.finish("The user is seamark; 'seamark flower --show-password' on the host says the password.\n")


class Application(flower.app.Flower):
    """Flower with our pages. Its own handlers ask for the password too; this asks first, for all of them."""

    def __init__(self, password: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._expected = f"{USER}:{password}".encode()
        static = {"path": str(HERE / "static")}
        self.add_handlers(r".*", [*handlers.PAGES, (r"/seamark/(.*)", web.StaticFileHandler, static)])

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate:
        if request.path == _OPEN or self._knows(request.headers.get("Authorization", "")):
            found: HTTPMessageDelegate = super().find_handler(request, **kwargs)
            return found
        refusing: HTTPMessageDelegate = self.get_handler_delegate(request, _Refused)
        return refusing

    def learn_of_workers(self) -> None:
        """Ask workers that came after Flower did what they consume: it asks by itself only those that were there."""
        for name, worker in list(self.events.state.workers.items()):
            if worker.alive and "active_queues" not in self.workers.get(name, {}):
                self.update_workers(name)

    def _knows(self, header: str) -> bool:
        scheme, _, rest = header.partition(" ")
        try:
            given = base64.b64decode(rest.strip(), validate=True)
        except ValueError:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(given, self._expected)


def serve(options: ServerOptions) -> int:
    """Answer until SIGTERM or SIGINT. Returns an exit code. Raises SeamarkError."""
    os.umask(0o077)
    try:
        sockets = bind_sockets(options.port, address=options.address)
    except OSError as error:
        raise SeamarkError(
            f"Flower cannot listen on {options.address}:{options.port}: {error.strerror}"
        ) from None
    application = _application(options)
    server = HTTPServer(application, max_body_size=_MOST_BODY)
    server.add_sockets(sockets)
    loop = IOLoop.current()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.add_callback_from_signal(application.stop))
    PeriodicCallback(application.learn_of_workers, _LEARN_EVERY_MS).start()
    application.start()
    return 0


def _application(options: ServerOptions) -> Application:
    its = flower.options.options
    # Flower asks for it as well; with it set, its API takes nothing from other sites.
    its.basic_auth = [f"{USER}:{options.password}"]
    its.address, its.port = options.address, options.port
    its.inspect_timeout = _INSPECT_MS
    its.persistent, its.state_save_interval = True, _SAVE_EVERY_MS
    its.db = str(flower_dir(options.state_dir) / f"tasks-{options.port}")
    its.max_tasks, its.tasks_columns, its.format_task = _TASKS_KEPT, _COLUMNS, shown_task
    if options.session_metrics:
        prometheus_client.REGISTRY.register(Sessions(options.state_dir))
    loader = _Loader(flower.urls.settings["template_path"])
    return Application(
        options.password, capp=app, options=its, events=QuietEvents.of(app, its), transforms=[_Headers],
        state_dir=options.state_dir, **{**flower.urls.settings, "template_loader": loader},
    )  # fmt: skip
