"""The real Flower, asked by HTTP: nothing without the password, and sessions as they are, however they are called."""

from __future__ import annotations

import base64
import html
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser

import pytest

from replication.errors import ExitCode
from replication.failures import Failure
from replication.progress import Progress
from replication.session import Session, SessionDir
from scheduler.history import History, path_of
from scheduler.reports import as_json, session_report
from scheduler.snapshot import Crawl, Phase, ProgressSnapshot
from scheduler.status_file import Backlog, StatusFile
from tests.scheduler.test_monitor import REPOSITORY
from tests.security.broker_writer import BrokerWriter
from tests.servers import wait_until

EVIL = os.fsdecode(b"d/<script>alert(1)</script>\"'&\xff\x1b[31m")


class Served:
    """`seamark flower` on a state directory, and what a client asks of it."""

    def __init__(self, state, broker, *options, **more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.state = state
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SEAMARK_BROKER": broker, **more}
        self.log = open(f"{state}.log", "ab+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "seamark", "flower", "--state-dir", state, "--port", str(self.port), *options],
            env=environment, cwd="/", stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def wait(self):
        until = time.monotonic() + 90
        while self.ask("/healthcheck", None)[0] != 200:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.1)

    def said(self):
        self.log.seek(0)
        return self.log.read().decode()

    def ask(self, path, credentials, method="GET", body=None):
        """Status, headers and text of an answer; 0 while nobody answers."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        if credentials is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(credentials).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        except OSError:
            return 0, {}, ""
        finally:
            connection.close()

    def page(self, path):
        password = (self.state / "flower" / "password").read_text().strip()
        status, headers, text = self.ask(path, f"seamark:{password}".encode())
        assert status == 200, (path, status, text[-2000:], self.said())
        return headers, text

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(60)
        self.log.close()
        return code


class Sessions:
    """Sessions in a state directory, of which this process says that it runs them."""

    def __init__(self, state):
        self.state = state
        self.places = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report)

    def add(self, name, **snapshot):
        place = SessionDir(self.state, name)
        place.path.mkdir(parents=True)
        place.save_run(
            Session(
                name=name, primary="/srv/<b>photos", secondary="backup@host:/srv/copy", id="1", instance=name
            )
        )
        self.places[name] = (place, snapshot)
        return place

    def _report(self):
        while not self._stop.wait(0.2):
            for place, snapshot in self.places.values():
                StatusFile(place).write(
                    ProgressSnapshot(phase=Phase.RUNNING, crawl=Crawl.CHANGELOG, **snapshot),
                    backlog=Backlog(entries=1234, files=56, bytes=789_000, age_s=snapshot.get("lag_s")),
                    counters={"files": 9, "bytes_sent": 10}, detector="filesystem",
                )  # fmt: skip

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


class Fields(HTMLParser):
    """The numbers of each session on a page."""

    def __init__(self, text):
        super().__init__()
        self.sessions = {}
        self._session = None
        self.scripts = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        said = dict(attributes)
        if "data-session" in said:
            self._session = self.sessions.setdefault(said["data-session"], {})
        if tag == "data":
            self._session[said["data-field"]] = said["value"]
        if tag == "script":
            self.scripts.append(said.get("src"))
        assert not [name for name in said if name.startswith("on") or name == "style"], (tag, said)
        assert not said.get("src", said.get("href", "")).startswith(("//", "http:", "javascript:")), (
            tag,
            said,
        )


def flat(report):
    """A report as `status --json` has it, in the words of the page."""
    found = as_json(report)
    found |= {f"backlog.{key}": value for key, value in found["backlog"].items()}
    found["checkpoint.completed"] = (found["checkpoint"] or {}).get("completed")
    return found


def same(shown, known):
    for field, value in shown.items():
        expected = known[field]
        if expected is None or isinstance(expected, bool):
            assert value == {None: "", True: "true", False: "false"}[expected], field
        else:
            assert float(value) == expected, field


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def test_flower_with_sessions(state, redis_server):
    with Sessions(state) as sessions:
        photos = sessions.add(
            "photos", lag_s=12.5, stime=1.8e9, rate_bytes_s=2.5e6, files_s=31.0, eta_s=4.0, failures=2
        )
        bad = [
            sessions.add(name) for name in ("config", "status", "progress", "history", "state-file", "target")
        ]
        made = Progress(photos.progress)
        made.record([Failure(step="data", gfid="ab", path=EVIL, code="io", error=f"cannot open {EVIL}")], [])
        made.ask(1, position=None, by_time=True)
        made.close()
        writer = History(photos)
        for step in (1, 2):
            writer._due = 0.0
            writer.note({"bytes": step * 1000}, 12.5, 60, 7, 2)
        sessions.places = {"photos": sessions.places["photos"]}  # nobody mends the others
        time.sleep(0.5)
        bad[0].run_config.write_text("jobs = <b>")
        (bad[1].path / "status.json").write_bytes(b"\0" * 100)
        bad[2].progress.write_bytes(b"no database" * 100)
        path_of(bad[3]).write_bytes(os.urandom(5000))
        bad[4].state_file.write_text("{")
        bad[5].run_config.write_text('primary = "/a"\nsecondary = "::"\n')
        served = Served(state, redis_server.url)
        try:
            served.wait()
            _nothing_without_the_password(served)
            _the_password_is_nowhere_else(served)
            _numbers_are_those_of_status(served, photos)
            _names_are_only_text(served)
            _metrics_of_the_sessions(served)
            _flowers_own_pages_lead_to_them(served)
        finally:
            code = served.stop()
        assert code == ExitCode.OK


def _nothing_without_the_password(served):
    password = (served.state / "flower" / "password").read_bytes().strip()
    for path in ("/", "/sessions", "/session/photos", "/session/photos/charts", "/workers", "/tasks", "/broker", "/metrics",
                 "/api/workers", "/api/tasks", "/static/js/flower.js", "/seamark/seamark.js", "/nothing"):  # fmt: skip
        for wrong in (
            None,
            b"seamark:",
            b"seamark:wrong",
            b"seamark:\xff\xfe",
            b"other:" + password,
            b"seamark:" + password + b"x",
            b"",
        ):
            status, headers, text = served.ask(path, wrong)
            assert status == 401, (path, wrong)
            assert headers["WWW-Authenticate"].startswith("Basic ")
            assert "photos" not in text
    assert served.ask("/tasks/datatable", None, "POST", "draw=1")[0] == 401
    assert served.ask("/api/task/send-task/x", b"seamark:wrong", "POST", "{}")[0] == 401
    assert served.ask("/sessions", b"seamark:" + password)[0] == 200
    assert served.ask("/session/nobody", b"seamark:" + password)[0] == 404


def _the_password_is_nowhere_else(served):
    password = (served.state / "flower" / "password").read_bytes().strip()
    for what in ("cmdline", "environ"):
        with open(f"/proc/{served.process.pid}/{what}", "rb") as file:
            assert password not in file.read()
    assert password.decode() not in served.said()


def _numbers_are_those_of_status(served, photos):
    headers, text = served.page("/sessions")
    assert headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    shown = Fields(text).sessions
    known = flat(session_report(str(served.state), "photos"))
    assert set(shown) == {"photos", "config", "status", "progress", "history", "state-file", "target"}
    assert len(shown["photos"]) == 10
    same(shown["photos"], known)
    assert known["failures"] == 2
    same(Fields(served.page("/session/photos")[1]).sessions["photos"], known)
    same(Fields(served.page("/sessions/part")[1]).sessions["photos"], known)
    assert "the file is damaged" in text
    for name in shown:
        served.page(f"/session/{name}")
        for part in ("numbers", "about", "charts", "charts?span=24h", "charts?span=<x>", "tasks"):
            served.page(f"/session/{name}/{part}")
    assert "polyline" in served.page("/session/photos/charts")[1]


def _names_are_only_text(served):
    _, text = served.page("/session/photos")
    shown = "d/<script>alert(1)</script>\"'&\\udcff\\x1b[31m"
    assert shown in html.unescape(text)
    assert "alert(1)" not in "".join(re.findall(r"<[^>]*>", text))
    assert all(script.startswith(("/static/", "/seamark/")) for script in Fields(text).scripts)
    assert "<b>" not in served.page("/sessions")[1]


def _metrics_of_the_sessions(served):
    _, text = served.page("/metrics")
    assert 'seamark_lag_seconds{secondary="backup@host:/srv/copy",session="photos"} 12.5' in text
    assert "flower_" in text


def _flowers_own_pages_lead_to_them(served):
    for path in ("/", "/workers", "/tasks", "/broker", "/sessions", "/session/photos"):
        headers, text = served.page(path)
        assert text.count('href="/sessions"') >= 1, path
        assert text.count('aria-current="page"') == 1, path
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_flower_believes_only_events_that_are_signed(state, tmp_path, redis_server):
    secret = os.urandom(32).hex()
    key = tmp_path / "message.key"
    key.write_text(secret)
    key.chmod(0o600)
    served = Served(state, redis_server.url, SEAMARK_MESSAGE_KEY_FILE=str(key))
    try:
        served.wait()
        with BrokerWriter(redis_server.url) as writer:

            def known():
                for wrong, name in ((None, "unsigned"), ("f" * 64, "by-another-key")):
                    writer.event("worker-online", {"hostname": f"{name}@elsewhere"}, secret=wrong)
                writer.event("worker-online", {"hostname": "signed@elsewhere"}, secret=secret)
                return "signed@elsewhere" in served.page("/workers")[1]

            wait_until(known, "a worker that tells of itself by signed events")
        time.sleep(1)
        _, text = served.page("/workers")
        assert "unsigned@" not in text
        assert "by-another-key@" not in text
        for words in ("untrusted content of type json", "an event: it is signed by another key"):
            assert words in served.said(), served.said()
    finally:
        served.stop()


def command(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "seamark", "flower", *map(str, words)], capture_output=True, text=True, cwd="/", timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )  # fmt: skip


def test_bad_input_is_one_line(state, tmp_path, redis_server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "empty").touch()
        for words, code, says in [
            (
                ["--port", port, "--broker", redis_server.url],
                1,
                f"cannot listen on 127.0.0.1:{port}: Address already in use",
            ),
            (["--password-file", tmp_path / "missing"], 2, "cannot be read"),
            (["--password-file", tmp_path / "empty"], 2, "its first line must be the password"),
            (["--address", "localhost"], 2, "is not an IP address"),
            (["--broker", "ftp://x"], 2, "broker must begin with one of"),
            ([], 2, "no broker: give --broker"),
        ]:
            done = command("--state-dir", state, *words, SEAMARK_BROKER="")
            assert (done.returncode, says in done.stderr, done.stderr.count("\n")) == (code, True, 1), (
                words,
                done,
            )
    shown = command("--state-dir", state, "--show-password")
    assert shown.stdout == (state / "flower" / "password").read_text()
