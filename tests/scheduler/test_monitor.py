"""The monitor, whole: sessions begin, pause, end, survive kills, and are no trouble to each other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import need
from tests.judge import assert_same, rsync_differences
from tests.system.trees import many_small_files

REPOSITORY = Path(__file__).resolve().parents[2]


class Node:
    """A state directory, commands on it, and a monitor that can be started and killed.

    ``prefix``: what takes a command to where it runs.
    """

    def __init__(self, base, prefix=()):
        self.prefix = prefix
        self.base, self.state = base, base / "state"
        self.environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SEAMARK_STATE_DIR": str(self.state)}
        self.process = None

    def command(self, *words, timeout=120):
        done = subprocess.run(
            [*self.prefix, sys.executable, "-m", "seamark", *map(str, words)],
            capture_output=True, text=True, env=self.environment, cwd="/", timeout=timeout, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def ok(self, *words, **more):
        done = self.command(*words, **more)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def monitor(self, *options):
        with open(self.base / "monitor.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "seamark", "monitor", *options],
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd="/",
            )

    def session(self, name, *options):
        primary = self.base / name
        primary.mkdir()
        self.ok("create", name, primary, self.base / f"{name}.copy", *options)
        return primary, self.base / f"{name}.copy"

    def wait_for(self, condition, what, timeout=60):
        until = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < until, (
                what() if callable(what) else what,
                (self.base / "monitor.log").read_text()[-3000:],
            )
            time.sleep(0.1)

    def wait_for_file(self, path, text):
        self.wait_for(lambda: path.exists() and path.read_text() == text, f"{path} to be {text!r}")

    def pids(self, name):
        return json.loads((self.state / "sessions" / name / "pids.json").read_text())

    def stop(self, number=signal.SIGTERM):
        below = _below(self.process.pid)
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.wait_for(lambda: not any(_alive(pid) for pid in below), "no process to be left")
        return code


def _below(pid):
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends while we look
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for child in (task / "children").read_text().split():
                    found += [int(child), *_below(int(child))]
    return found


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def node(tmp_path):
    need("rsync", "mtree")
    made = Node(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        below = _below(made.process.pid)
        made.process.kill()
        made.process.wait()
        for pid in below:
            if _alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_session_from_its_creation_to_its_end(node):
    primary, copy = node.session("photos")
    (primary / "a").write_text("before")
    node.monitor()
    time.sleep(1)
    assert not copy.exists()  # created is not started
    node.ok("start", "photos")
    node.wait_for_file(copy / "a", "before")
    node.ok("pause", "photos")
    time.sleep(1)
    (primary / "b").write_text("while paused")
    time.sleep(3)
    assert not (copy / "b").exists()
    node.ok("resume", "photos")
    node.wait_for_file(copy / "b", "while paused")
    node.ok("stop", "photos")
    node.wait_for(lambda: node.command("delete", "photos").returncode == 0, "the session to be deleted")
    assert node.ok("list") == ""
    assert_same(primary, copy)
    assert node.stop() == 0


def test_what_is_started_survives_kills_and_a_reboot(node):
    primary, copy = node.session("photos")
    paused, its_copy = node.session("paused")
    node.monitor()
    node.ok("start", "photos")
    node.ok("start", "paused")
    (primary / "a").write_text("1")
    (paused / "a").write_text("1")
    node.wait_for_file(copy / "a", "1")
    node.wait_for_file(its_copy / "a", "1")
    node.ok("pause", "paused")
    node.wait_for(lambda: "worker data" in node.pids("photos"), "workers")
    os.kill(node.pids("photos")["worker data"], signal.SIGKILL)
    os.kill(json.loads((node.state / "monitor" / "pids.json").read_text())["session photos"], signal.SIGKILL)
    (primary / "b").write_text("2")
    node.wait_for_file(copy / "b", "2")
    # a reboot: everything is gone, and what Redis held with it
    for pid in [node.process.pid, *_below(node.process.pid)]:
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)
    node.process.wait()
    (primary / "c").write_text("3")
    (paused / "c").write_text("3")
    node.monitor()
    node.wait_for_file(copy / "c", "3")
    time.sleep(2)
    assert not (its_copy / "c").exists()
    node.ok("resume", "paused")
    node.wait_for_file(its_copy / "c", "3")
    assert_same(primary, copy)
    assert node.stop() == 0


@pytest.mark.slow
def test_a_pause_in_the_middle_of_a_crawl_holds_it_there(node):
    primary, copy = node.session("photos", "--set", "jobs=1")
    many_small_files(primary, 40_000, 400)
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: copy.exists() and _files(copy) > 100, "a beginning")
    node.ok("pause", "photos")
    time.sleep(6)  # what is under way ends
    before = _files(copy)
    time.sleep(6)
    assert _files(copy) == before
    node.ok("resume", "photos")
    node.wait_for(lambda: not rsync_differences(primary, copy), "the rest", 110)
    assert before < 40_000
    assert node.stop() == 0


def _files(root):
    return sum(len(files) for directory, _, files in os.walk(root) if ".seamark" not in directory)


@pytest.mark.slow
def test_a_session_works_in_the_windows_of_its_schedule(node):
    primary, copy = node.session("photos")
    (primary / "a").write_text("1")
    far = (datetime.now() + timedelta(hours=12)).strftime("%M %H * * *")
    node.ok("config", "photos", "set", "schedule.at", far)
    node.ok("config", "photos", "set", "schedule.duration", "1h")
    node.monitor()
    node.ok("start", "photos")
    status = node.state / "sessions" / "photos" / "status.json"
    node.wait_for(lambda: status.exists() and "outside of its schedule" in status.read_text(), "a reason")
    assert not (copy / "a").exists()
    node.ok(
        "config",
        "photos",
        "set",
        "schedule.at",
        (datetime.now() - timedelta(minutes=2)).strftime("%M %H * * *"),
    )
    node.wait_for_file(copy / "a", "1")
    node.wait_for(lambda: "consistent; resting until" in status.read_text(), "rest")
    (primary / "b").write_text("after the window began")
    time.sleep(6)
    assert not (copy / "b").exists()
    node.ok("config", "photos", "reset", "schedule.at")
    node.wait_for_file(copy / "b", "after the window began")
    assert node.stop() == 0


def test_a_damaged_session_is_no_other_ones_trouble(node):
    primary, copy = node.session("good")
    node.session("bad")
    node.ok("start", "good")
    node.ok("start", "bad")
    (node.state / "config" / "sessions" / "bad.toml").write_text("jobs = ")
    (node.state / "sessions" / "bad" / "state.json").write_text("{")
    node.monitor()
    (primary / "a").write_text("1")
    node.wait_for_file(copy / "a", "1")
    assert "damaged" in node.ok("list")
    said = node.command("config", "bad")
    assert (said.returncode, "bad.toml" in said.stderr) == (2, True)
    node.ok("delete", "bad")
    assert "bad" not in node.ok("list")
    assert node.stop() == 0


@pytest.mark.slow
def test_the_limit_of_the_fleet_holds_for_a_session_that_has_none(node):
    primary, copy = node.session("photos", "--set", "compression=off")
    node.ok("config", "all", "set", "fleet_bandwidth", "64K")
    node.monitor()
    time.sleep(1)
    (primary / "a").write_bytes(os.urandom(8 << 20))
    node.ok("start", "photos")
    node.wait_for(lambda: list(copy.glob(".seamark/staging/*.*-*")), "a beginning")
    time.sleep(5)
    assert not (copy / "a").exists()
    node.ok("config", "all", "reset", "fleet_bandwidth")
    node.wait_for(lambda: (copy / "a").exists(), "the file")
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("monitor_too", [False, True])
def test_what_a_killed_session_leaves_behind_is_ended(node, monitor_too):
    """A worker that cannot end holds the lock that the session needs to begin again; and no other."""
    primary, copy = node.session("photos")
    node.monitor()
    node.ok("start", "photos")
    (primary / "a").write_text("1")
    node.wait_for_file(copy / "a", "1")
    left = node.pids("photos")["worker data"]
    os.kill(json.loads((node.state / "monitor" / "pids.json").read_text())["session photos"], signal.SIGKILL)
    if monitor_too:
        node.process.kill()
        node.process.wait()
    for _ in range(20):  # when their parents end, the kernel has those go on that are stopped
        os.kill(left, signal.SIGSTOP)
        time.sleep(0.05)
    if monitor_too:
        node.monitor()
    (primary / "b").write_text("2")
    node.wait_for(lambda: (copy / "b").exists(), "the session to go on", 90)
    assert not _alive(left)
    assert node.stop() == 0


def test_one_monitor_is_enough(node):
    node.monitor()
    node.wait_for(lambda: (node.state / "monitor" / "monitor.sock").exists(), "the monitor")
    second = node.command("monitor")
    assert second.returncode == 8
    assert "another monitor" in second.stderr
    assert node.stop(signal.SIGINT) == 0


def test_commands_in_the_wrong_state_say_so(node):
    node.session("photos")
    for words, code, says in [
        (("start", "nobody"), 4, "there is no session nobody (known: photos)"),
        (("stop", "photos"), 2, "is created, not started"),
        (("pause", "photos"), 2, "is created, not started"),
        (("resume", "photos"), 2, "is created, not started"),
        (("create", "photos", node.base / "photos", node.base / "x"), 2, "there is a session photos already"),
        (
            ("create", "again", node.base / "photos", node.base / "photos.copy"),
            8,
            "session photos replicates the same",
        ),
        (("create", "no/name", node.base / "photos", node.base / "x"), 2, "session name"),
        (("create", "gone", node.base / "not there", node.base / "x"), 4, "was not created"),
        (("config", "photos", "set", "jobs", "0"), 2, "jobs: '0' will not do"),
        (("config", "photos", "set", "jobs"), 2, "give: config NAME set KEY VALUE"),
        (("config", "photos", "get", "nothing"), 2, "there is no key nothing"),
        (("run", node.base / "photos", node.base / "x", "--name", "photos"), 2, "seamark start photos"),
    ]:
        done = node.command(*words)
        assert (done.returncode, says in done.stderr) == (code, True), (words, done)
        assert len(done.stderr.splitlines()) == 1, done.stderr
    node.ok("start", "photos")
    assert "stop it first" in node.command("delete", "photos").stderr
    assert "started already" in node.ok("start", "photos")


def test_settings_by_command_and_by_hand(node):
    node.session("photos", "--set", "jobs=3", "--set", "sync-method=tar")
    assert node.ok("config", "photos", "get", "jobs").strip() == "3"
    assert 'sync_method = "tar"' in node.ok("config", "photos")
    node.ok("config", "photos", "set", "jobs", "5")
    assert "from: default" in node.ok("config", "photos", "--explain")
    node.ok("config", "photos", "reset", "jobs")
    assert node.ok("config", "photos", "get", "jobs").strip() == "2"
    assert "[OK]" in node.ok("configcheck")
    assert (
        "choose another name" in node.command("create", "all", node.base / "photos", node.base / "x").stderr
    )
    assert node.ok("config", "all", "get", "fleet-bandwidth").strip() == '"off"'
    node.ok("config", "all", "set", "fleet-bandwidth", "08:00,1M 20:00,off")
    assert "08:00,1M" in node.ok("config", "all", "--explain")
    assert node.command("config", "all", "set", "fleet-bandwidth", "fast").returncode == 2
    assert node.command("config", "all", "set", "jobs", "3").returncode == 2
    assert "[OK]" in node.ok("configcheck", "all")
    by_hand = node.base / "by hand.toml"
    by_hand.write_text('primary = "/a"\nsecondary = "h:/b"\njobs = "many"\n')
    done = node.command("configcheck", by_hand)
    assert done.returncode == 2
    assert "jobs: expected int, got str" in done.stdout
