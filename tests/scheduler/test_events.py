"""Events are told once, arrive in their order however often it takes, and can be verified."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from replication.checkpoints import Checkpoint
from replication.failures import Failure
from replication.session import SessionDir, SessionState
from scheduler import courier
from scheduler.courier import SIGNATURE, Courier, signature
from scheduler.events import EventBook, Kind, spool
from seamark.logs import one_line
from tests.scheduler.test_monitor import node  # noqa: F401

SECRET = "a secret of both"


class Receiver:
    """A real HTTP server that answers with ``codes`` first, then with 204."""

    def __init__(self, *codes):
        self.codes, self.asked, self.events, self.bodies = list(codes), 0, [], []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked += 1
                code = receiver.codes.pop(0) if receiver.codes else 204
                if code < 300:
                    receiver.bodies.append((body, dict(self.headers)))
                    receiver.events.append(json.loads(body))
                self.send_response(code)
                if code in (301, 302, 307):
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def kinds(self):
        return [event["event"] for event in self.events]

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receive():
    made = []

    def make(*codes):
        made.append(Receiver(*codes))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def place(tmp_path):
    made = SessionDir(tmp_path, "s1")
    made.path.mkdir(parents=True)
    made.named_config.parent.mkdir(parents=True)
    made.save_state(SessionState(id="1"))
    return made


def configure(place, **events):
    lines = [f"{key} = {json.dumps(value)}" for key, value in events.items()]
    place.named_config.write_text("\n".join(['primary = "/p"', 'secondary = "/s"', "[events]", *lines]))


def deliver(tmp_path, condition, timeout=30):
    made = Courier(tmp_path)
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        made.step()
        time.sleep(0.02)
    made._pool.shutdown()
    made.step()
    made.step()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(courier, "_FIRST_S", 0.05)


# ---- delivery


def test_a_webhook_that_fails_twice_gets_all_in_order_signed(place, tmp_path, receive, quick):
    hook, other = receive(500, 503), receive()
    configure(place, webhook=[hook.url, other.url], secret=SECRET)
    book = EventBook(place)
    book.state(Kind.ACTIVE)
    book.state(Kind.FAULTY, "beat is \udcff away")
    book.state(Kind.ACTIVE)
    deliver(tmp_path, lambda: len(hook.events) == 3 and len(other.events) == 3)
    assert hook.kinds() == other.kinds() == ["active", "faulty", "active"]
    assert hook.asked == 5
    assert len({event["id"] for event in hook.events}) == 3
    for body, headers in hook.bodies:
        assert headers[SIGNATURE] == signature(SECRET, body)
        assert headers[SIGNATURE] != signature("another", body)
    assert hook.events[1]["reason"] == "beat is \udcff away"
    assert list(spool(place).iterdir()) == []


@pytest.mark.parametrize("code", [302, 404])
def test_what_is_not_taken_waits_also_for_another_courier(place, tmp_path, receive, quick, code):
    hook = receive(*[code] * 3)
    configure(place, webhook=[hook.url])
    EventBook(place).state(Kind.ACTIVE)
    deliver(tmp_path, lambda: hook.asked >= 2)
    assert hook.events == []
    assert len(list(spool(place).iterdir())) == 1
    deliver(tmp_path, lambda: hook.events)
    assert SIGNATURE not in hook.bodies[0][1]
    assert list(spool(place).iterdir()) == []


def test_a_hook_that_hangs_holds_up_no_other_session(place, tmp_path, receive, quick, monkeypatch):
    monkeypatch.setattr(courier, "COMMAND_S", 3.0)
    hook = receive()
    configure(place, command=["sleep", "100"])
    other = SessionDir(tmp_path, "s2")
    other.path.mkdir(parents=True)
    configure(other, webhook=[hook.url])
    EventBook(place).state(Kind.ACTIVE)
    EventBook(other).state(Kind.ACTIVE)
    deliver(tmp_path, lambda: hook.events)
    assert len(list(spool(place).iterdir())) == 1


def test_a_command_gets_the_event_on_its_standard_input_without_a_shell(place, tmp_path, quick):
    kept = tmp_path / "kept"
    script = tmp_path / "hook $(touch expanded)"
    script.write_text(f'#!/bin/sh\n[ "$1" = "a b; c" ] && cat >> {kept} && echo >> {kept}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    configure(place, command=[str(script), "a b; c"])
    EventBook(place).state(Kind.FAULTY, "why")
    deliver(tmp_path, lambda: not list(spool(place).iterdir()))
    assert json.loads(kept.read_text())["reason"] == "why"
    assert not (tmp_path / "expanded").exists()


def test_a_command_that_fails_is_given_up(place, tmp_path, quick, monkeypatch, caplog):
    monkeypatch.setattr(courier, "_COMMAND_TRIES", 2)
    configure(place, command=["sh", "-c", "echo no such thing >&2; exit 3"])
    EventBook(place).state(Kind.ACTIVE)
    deliver(tmp_path, lambda: not list(spool(place).iterdir()))
    assert "was not delivered to command: exit code 3: no such thing" in caplog.text


# ---- the book


def told(caplog):
    found = [r.getMessage().removeprefix("event ") for r in caplog.records if r.name == "seamark.events"]
    return [json.loads(text) for text in found if text.startswith("{")]


def test_who_looks_on_reads_words(place, caplog):
    caplog.set_level("INFO")
    configure(place)
    book = EventBook(place)
    book.state(Kind.ACTIVE)
    book.state(Kind.FAULTY, "no route to host")
    book.lag(75.0, 60)
    book.failures(
        [Failure(step="data", gfid=None, path="a", code="io", error="a: Input/output error", tries=2)]
    )
    assert [one_line(record) for record in caplog.records if record.name == "seamark.events"] == [
        f"{place.name}: active",
        f"{place.name}: faulty: no route to host",
        f"{place.name}: rpo missed: lag 75.0 s of 60 s",
        f"{place.name}: failure added (data): a: Input/output error",
    ]


def test_each_change_is_told_once_also_over_restarts(place, caplog):
    caplog.set_level("INFO")
    configure(place)

    def checkpoint(number, reached):
        return Checkpoint(number, 0, 10**9, by_time=False, position=None, reached_ns=reached)

    failure = Failure(step="data", gfid=None, path="a\udcff", code="io", error="E")
    for _ in range(2):
        book = EventBook(place)
        for _ in range(2):
            book.state(Kind.ACTIVE)
            book.lag(5.0, None)
            book.lag(5.0, 10)
            book.checkpoints([checkpoint(1, 5)])
            book.failures([])
    assert [event["event"] for event in told(caplog)] == ["active"]
    caplog.clear()
    for _ in range(2):
        book = EventBook(place)
        for _ in range(2):
            book.state(Kind.FAULTY, "why")
            book.lag(11.0, 10)
            book.lag(None, 10)
            book.checkpoints([checkpoint(1, 5), checkpoint(2, None), checkpoint(3, 7)])
            book.failures([failure])
    assert [e["event"] for e in told(caplog)] == [
        "faulty",
        "rpo-missed",
        "checkpoint-reached",
        "failure-added",
    ]
    assert told(caplog)[3]["path"] == "a\udcff"
    caplog.clear()
    EventBook(place).state(Kind.PAUSED)  # another process, as the monitor is
    book.lag(9.0, 10)
    book.checkpoints([checkpoint(1, 5), checkpoint(2, 9), checkpoint(3, 7)])
    book.failures([])
    book.state(Kind.STOPPED)
    kinds = [event["event"] for event in told(caplog)]
    assert kinds == ["paused", "rpo-met", "checkpoint-reached", "failure-resolved", "stopped"]
    assert not spool(place).exists()


def test_what_was_renamed_while_it_was_to_be_read_is_told_of_when_it_fails_again(place, caplog):
    """Whoever extracts a tree and renames it at once is not to be woken by that."""
    caplog.set_level("INFO")
    configure(place)
    once = Failure(step="data", gfid="1", path="f", code="moved", error="E")
    book = EventBook(place)
    book.failures([once])
    book.failures([])
    assert told(caplog) == []
    book.failures([dataclasses.replace(once, tries=2)])
    book.failures([])
    assert [event["event"] for event in told(caplog)] == ["failure-added", "failure-resolved"]


def test_many_failures_are_summed_up(place, caplog):
    configure(place)
    many = [Failure(step="data", gfid=str(n), path=f"f{n}", code="io", error="E") for n in range(50)]
    EventBook(place).failures(many)
    assert len(told(caplog)) == 21
    assert told(caplog)[-1]["reason"] == "and 30 more"


# ---- whole


@pytest.mark.timeout(300)
def test_the_life_of_a_session_as_its_webhook_hears_it(node, receive):  # noqa: F811
    hook = receive(500, 500)
    primary, copy = node.session("photos", "--set", f"events.webhook={hook.url}", "--set", "events.secret=s")
    node.monitor()
    node.ok("start", "photos")
    (primary / "a").write_text("1")
    node.wait_for_file(copy / "a", "1")

    def heard(*kinds):
        node.wait_for(lambda: hook.kinds() == list(kinds), f"{kinds}: {hook.events}")

    heard("active")
    node.ok("checkpoint", "photos", "now")
    heard("active", "checkpoint-reached")
    beat = node.pids("photos")["beat"]
    os.kill(beat, signal.SIGSTOP)
    try:
        heard("active", "checkpoint-reached", "faulty")
        assert "beat" in hook.events[-1]["reason"]
    finally:
        os.kill(beat, signal.SIGCONT)
    heard("active", "checkpoint-reached", "faulty", "active")
    node.ok("pause", "photos")
    heard("active", "checkpoint-reached", "faulty", "active", "paused")
    node.ok("stop", "photos")
    heard("active", "checkpoint-reached", "faulty", "active", "paused", "stopped")
    for body, headers in hook.bodies:
        assert headers[SIGNATURE] == signature("s", body)
    assert '"event": "faulty"' in (node.state / "logs" / "photos.log").read_text()
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_session_that_cannot_begin_is_told_once_not_at_each_try(node, receive):  # noqa: F811
    hook = receive()
    primary, _ = node.session("photos", "--set", f"events.webhook={hook.url}")
    primary.rename(node.base / "elsewhere")
    node.monitor()
    node.ok("start", "photos")
    log = node.base / "monitor.log"
    node.wait_for(lambda: log.read_text().count("starting session photos again") >= 4, "tries")
    (node.base / "elsewhere").rename(primary)
    node.wait_for(lambda: hook.kinds() == ["faulty", "active"], lambda: hook.events, 120)
    assert str(primary) in hook.events[0]["reason"]
    assert node.stop() == 0
