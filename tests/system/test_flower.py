"""Flower and the sessions in it, in a real browser, beside a real session with load."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from tests.browser import Browser, need_browser
from tests.conftest import missing
from tests.judge import assert_same
from tests.scheduler.test_monitor import node  # noqa: F401
from tests.seamark.pages.test_server import same
from tests.system.trees import many_small_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PHONE = (360, 780)
EVIL = b"<img src=x onerror=alert(1)>\xff"
_NUMBERS = """
    Object.fromEntries([...document.querySelectorAll('[data-session="SESSION"] data')].map(
        (each) => [each.dataset.field, each.value]))
"""


class Shown:
    """A node with a monitor and Flower, and browsers to look at it."""

    def __init__(self, node, tmp_path):  # noqa: F811
        self.node, self.base = node, tmp_path
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._browsers = 0

    def start(self):
        self.node.monitor("--flower", str(self.port))
        self.node.wait_for(self.answers, "Flower", 120)

    def answers(self):
        with socket.socket() as it:
            return it.connect_ex(("127.0.0.1", self.port)) == 0

    def browser(self, password=None):
        self._browsers += 1
        password = password or self.node.ok("flower", "--show-password").strip()
        return Browser(self.base / f"browser{self._browsers}", ("seamark", password))

    def status(self, name):
        """`status --json`, in the words of the page."""
        found = json.loads(self.node.ok("status", name, "--json"))
        found |= {f"backlog.{key}": value for key, value in found["backlog"].items()}
        found["checkpoint.completed"] = (found["checkpoint"] or {}).get("completed")
        return found

    def flower_pid(self):
        return json.loads((self.node.state / "monitor" / "pids.json").read_text())["flower"]


@pytest.fixture
def shown(node, tmp_path):  # noqa: F811
    need_browser()
    return Shown(node, tmp_path)


def numbers(browser, session):
    return browser.value(_NUMBERS.replace("SESSION", session))


def test_a_session_with_load_in_a_browser(shown):
    node = shown.node  # noqa: F811
    primary, copy = node.session("photos")
    many_small_files(primary, 400, 10)
    shown.start()
    node.ok("start", "photos")
    node.wait_for(lambda: (copy / "d9").exists(), "a beginning")
    _a_wrong_password_is_refused(shown)
    with shown.browser() as browser:
        for at in range(30):
            (primary / f"later{at}").write_bytes(os.urandom(10_000))
        _the_page_follows_status(shown, browser, primary, copy)
        _workers_and_tasks_are_found(shown, browser)
        _it_fits_a_telephone(shown, browser)
        assert browser.complaints == []
    assert_same(primary, copy)
    assert node.stop() == 0


def _a_wrong_password_is_refused(shown):
    with shown.browser("wrong") as browser:
        browser.open(f"{shown.url}/sessions")
        assert browser.asked == 2  # once more, and then it gave up
        assert "photos" not in browser.text()
        assert "show-password" in browser.text()


def _the_page_follows_status(shown, browser, primary, copy):
    """While it works its numbers lie between those of before and after; at rest they are the same."""
    browser.open(f"{shown.url}/sessions")
    assert browser.asked == 1
    for _ in range(5):
        before = shown.status("photos")
        browser.open(f"{shown.url}/sessions")
        seen = numbers(browser, "photos")
        after = shown.status("photos")
        assert len(seen) == 10
        if after["last_synced"] is not None:
            assert (before["last_synced"] or 0) <= float(seen["last_synced"] or 0) <= after["last_synced"]
        assert before["failures"] <= float(seen["failures"]) <= after["failures"]
    (primary / "last").write_text("last")
    shown.node.wait_for_file(copy / "last", "last")
    shown.node.ok("pause", "photos")  # nothing moves: lag alone grows
    browser.wait_for(
        "document.querySelector('[data-field=status]').innerText === 'Paused'", "the page to follow"
    )
    _at_one_moment(shown, browser)
    shown.node.ok("resume", "photos")
    browser.wait_for(
        "document.querySelector('[data-field=status]').innerText === 'Active'", "the page to follow"
    )


def _at_one_moment(shown, browser):
    """The process of the session is held, so that what it said last is what both show."""
    pid = json.loads((shown.node.state / "monitor" / "pids.json").read_text())["session photos"]
    os.kill(pid, signal.SIGSTOP)
    try:
        known = shown.status("photos")
        browser.open(f"{shown.url}/sessions")
        seen = numbers(browser, "photos")
    finally:
        os.kill(pid, signal.SIGCONT)
    for grows in (
        "lag_s",
        "backlog.age_s",
        "rate_bytes_s",
        "eta_s",
    ):  # of a process that says nothing, after 10 s
        seen.pop(grows)
    same(seen, known)
    assert set(seen) == {
        "last_synced", "checkpoint.completed", "backlog.bytes", "backlog.files", "backlog.entries", "failures"
    }  # fmt: skip


def _workers_and_tasks_are_found(shown, browser):
    browser.open(f"{shown.url}/session/photos")
    browser.wait_for("document.querySelectorAll('.sm-batch a').length > 0", "tasks with batches")
    batch = browser.value("document.querySelector('.sm-batch a').innerText")
    browser.value("document.querySelector('.sm-batch a').click()")
    browser.wait_for("location.pathname === '/tasks'", "the list of tasks")
    browser.wait_for("document.querySelectorAll('#tasks-table tbody tr[id]').length > 0", "its rows")
    rows = browser.value(
        "[...document.querySelectorAll('#tasks-table tbody tr')].map((row) => row.innerText)"
    )
    assert all(f"photos, batch {batch}" in row for row in rows), rows
    browser.open(f"{shown.url}/tasks?name=scheduler")
    browser.wait_for("document.querySelector('#tasks-table_info') !== null", "the list of tasks")
    assert not any(job in browser.text() for job in ("jobs.sweep", "jobs.crawl_tick", "jobs.answer"))
    browser.open(f"{shown.url}/workers")
    browser.wait_for(
        "document.querySelector('#workers-table').innerText.includes('data@')", "the data worker"
    )
    browser.wait_for(
        "document.querySelector('#workers-table').innerText.includes('control@')", "the control worker"
    )
    browser.open(f"{shown.url}/broker")
    browser.wait_for("document.body.innerText.includes('stream.')", "the queues")
    # Flower started again knows them still
    os.kill(shown.flower_pid(), signal.SIGTERM)
    shown.node.wait_for(lambda: not shown.answers(), "Flower to end")
    shown.node.wait_for(shown.answers, "Flower", 120)
    browser.open(f"{shown.url}/tasks?name=tasks.%20kwargs%3Abatch%3D{batch}")
    browser.wait_for("document.querySelectorAll('#tasks-table tbody tr[id]').length > 0", "what it knew")


def _it_fits_a_telephone(shown, browser):
    browser.size(*PHONE, phone=True)
    for dark in (False, True):
        browser.dark(dark=dark)
        for path in ("/sessions", "/session/photos"):
            browser.open(f"{shown.url}{path}")
            assert browser.overflow() == 0, path
            colour = browser.value("getComputedStyle(document.querySelector('.sm-card')).backgroundColor")
            assert (colour != "rgb(255, 255, 255)") == dark
    browser.size(1280, 900)


def test_what_is_wrong_is_shown_and_harmless(shown):
    """A damaged session beside one with a failure of something with a malicious name."""
    node = shown.node  # noqa: F811
    primary, copy = node.session("archive")
    node.session("bad")
    (primary / "closed").mkdir()
    (primary / "<svg onload=alert(2)>").write_bytes(os.urandom(3 << 20))  # too large to travel with its name
    shown.start()
    node.ok("start", "archive")
    node.wait_for(lambda: (copy / "closed").exists(), "the directory")
    if subprocess.run(["chattr", "+i", copy / "closed"], check=False, capture_output=True).returncode:
        missing("chattr +i is not possible here")
    try:
        with open(os.fsencode(primary / "closed") + b"/" + EVIL, "w") as file:
            file.write("x")
        (node.state / "config" / "sessions" / "bad.toml").write_text("jobs = '<script>'")
        node.wait_for(lambda: shown.status("archive")["failures"] > 0, "a failure")
        with shown.browser() as browser:
            browser.open(f"{shown.url}/session/archive")
            browser.wait_for("document.querySelectorAll('.sm-table .sm-path').length > 0", "the failure")
            text = "<img src=x onerror=alert(1)>\\udcff"
            browser.wait_for(f"document.body.innerText.includes({json.dumps(text)})", "its name")
            browser.open(f"{shown.url}/sessions")
            browser.wait_for("document.querySelectorAll('[data-session]').length === 2", "both")
            assert "bad.toml" in browser.text()
            browser.open(f"{shown.url}/tasks?name=sync_by")
            browser.wait_for(
                "document.body.innerText.includes('<svg onload')", "a name, as Flower itself shows it"
            )
            assert browser.value("document.querySelectorAll('img[src=x], #tasks-table svg').length") == 0
            assert browser.complaints == []
    finally:
        subprocess.run(["chattr", "-i", copy / "closed"], check=True)
    node.wait_for(lambda: shown.status("archive")["failures"] == 0, "the failure to be over", 120)
    time.sleep(1)
    assert_same(primary, copy)
    assert node.stop() == 0
