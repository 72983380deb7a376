"""`seamark status` never lies: each role is frozen, killed or cut off in turn, and it says so."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scheduler.reports import as_json, session_report
from tests.conftest import missing
from tests.filesystems import available, filesystem
from tests.scheduler.test_monitor import _below, node  # noqa: F401
from tests.seamark.terminal import Terminal
from tests.system.test_faults import pool_children

# docs/operations.md says how soon each is noticed; a busy machine may take longer.
NOTICED_S = 60


def report(node, name="photos"):  # noqa: F811
    """What `status --json` prints; asked in this process, which takes no start of a Python."""
    return as_json(session_report(str(node.state), name))


def wait_healthy(node):  # noqa: F811
    try:
        node.wait_for(
            lambda: (found := report(node))["healthy"] is True and found["lag_s"] is not None, "healthy", 120
        )
    except AssertionError:
        raise AssertionError(report(node)["reasons"]) from None


def wait_reason(node, code, *words):  # noqa: F811
    def first():
        found = report(node)
        return found["reasons"][0]["code"] if found["healthy"] is False else None

    node.wait_for(lambda: first() == code, f"{code}: {report(node)}", NOTICED_S)
    found = report(node)
    for word in words:
        assert word in found["reason"]
    return found


def secondary_agents(node):  # noqa: F811
    below = _below(session_process(node))
    serve = base64.b64encode(b"serve")  # arguments of the bootstrap are written like that
    return [pid for pid in below if serve in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def session_process(node):  # noqa: F811
    return json.loads((node.state / "monitor" / "pids.json").read_text())["session photos"]


def redis_process(node):  # noqa: F811
    for pid in _below(node.process.pid):
        if Path(f"/proc/{pid}/comm").read_text().strip() in ("valkey-server", "redis-server"):
            return pid
    raise AssertionError("no Redis")


def recording_process(node):  # noqa: F811
    pids = json.loads((node.state / "monitor" / "pids.json").read_text())
    return next(pid for name, pid in pids.items() if name.startswith("agent "))


FROZEN = {
    "the agent": (lambda n: [recording_process(n)], "agent"),
    "the session's agent": (lambda n: [n.pids("photos")["agent"]], "agent"),
    "the control worker": (lambda n: [n.pids("photos")["worker control"]], "worker-control"),
    "the data worker": (lambda n: [n.pids("photos")["worker data"]], "worker-data"),
    "all processes of the data worker's pool": (
        lambda n: pool_children(n.pids("photos")["worker data"]),
        "worker-data",
    ),
    "one of the control worker's": (
        lambda n: pool_children(n.pids("photos")["worker control"])[:1],
        "worker-control",
    ),
    "beat": (lambda n: [n.pids("photos")["beat"]], "beat"),
    "Redis": (lambda n: [redis_process(n)], "redis"),
    "the secondary agents": (secondary_agents, "secondary"),
    "the session's process": (lambda n: [session_process(n)], "process"),
    "the monitor": (lambda n: [n.process.pid], "monitor"),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_role_is_frozen_in_turn(node):  # noqa: F811
    primary, copy = node.session("photos")
    (primary / "a").write_text("1")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for_file(copy / "a", "1")
    for role, (pids_of, code) in FROZEN.items():
        wait_healthy(node)
        assert report(node)["status"] == "Active"
        pids = []
        until = time.monotonic() + 60
        while not pids:  # the secondary agents come with the first question to them
            assert time.monotonic() < until, role
            time.sleep(0.1)
            with contextlib.suppress(FileNotFoundError):
                pids = pids_of(node)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            found = wait_reason(node, code)
            assert found["status"] == "Faulty", role
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        wait_healthy(node)
    (primary / "b").write_text("2")
    node.wait_for_file(copy / "b", "2")
    assert node.command("status", "--check").returncode == 0
    os.kill(node.process.pid, signal.SIGSTOP)
    assert node.command("status", "--check").returncode == 1
    os.kill(node.process.pid, signal.SIGCONT)
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_stuck_is_killed_and_started_again(node):  # noqa: F811
    primary, copy = node.session("photos")
    node.monitor()
    node.ok("start", "photos")
    (primary / "a").write_text("1")
    node.wait_for_file(copy / "a", "1")
    roles = [
        "the agent", "the session's agent", "the control worker", "the data worker", "beat", "Redis", "the session's process",
    ]  # fmt: skip
    for number, role in enumerate(roles):
        wait_healthy(node)
        (pid,) = FROZEN[role][0](node)
        os.kill(pid, signal.SIGSTOP)
        gone = f"/proc/{pid}"
        node.wait_for(lambda gone=gone: not os.path.exists(gone), f"{role} to be killed", 200)
        wait_healthy(node)
        (primary / "a").write_text(f"after {number}")
        node.wait_for_file(copy / "a", f"after {number}")
    assert "does not run: killed, to be started again" in (node.base / "monitor.log").read_text()
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_is_dead_or_dies_again_and_again(node):  # noqa: F811
    primary, copy = node.session("photos")
    assert report(node)["status"] == "Created"
    assert report(node)["healthy"] is None
    node.ok("start", "photos")
    assert wait_reason(node, "monitor", "no monitor")["status"] == "Faulty"
    node.monitor()
    (primary / "a").write_text("1")
    node.wait_for_file(copy / "a", "1")
    wait_healthy(node)
    node.wait_for(lambda: report(node)["last_synced"], "a mark")
    synced = report(node)["last_synced"]
    node.process.kill()
    node.process.wait()
    found = wait_reason(node, "monitor")
    assert found["last_synced"] >= synced  # what was known stays
    said = node.ok("status", "photos", "--detail")
    assert "Faulty" in said
    assert "no monitor runs here" in said
    # It cannot begin any more: the reason stays while the monitor tries again and again.
    node.wait_for(lambda: not os.path.exists(f"/proc/{found['pid']}"), "the session's process to end")
    primary.rename(node.base / "elsewhere")
    node.monitor()
    found = wait_reason(node, "process", str(primary))
    for _ in range(20):
        assert report(node)["healthy"] is False
        time.sleep(0.2)
    (node.base / "elsewhere").rename(primary)
    wait_healthy(node)
    node.ok("stop", "photos")
    assert report(node)["status"] == "Stopped"
    assert report(node)["healthy"] is None
    assert node.command("status", "nobody").returncode == 4
    assert json.loads(node.ok("status", "photos", "--json"))["status"] == "Stopped"
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(300)
def test_a_full_secondary_failures_and_the_target(node):  # noqa: F811
    if why := available("tmpfs"):
        missing(why)
    with filesystem("tmpfs", node.base, mib=4) as small:
        primary = node.base / "photos"
        primary.mkdir()
        node.ok("create", "photos", primary, small / "copy")
        node.monitor()
        node.ok("start", "photos")
        (primary / "a").write_text("1")
        node.wait_for_file(small / "copy" / "a", "1")
        wait_healthy(node)
        node.ok("config", "photos", "set", "rpo", "1")
        (primary / "large").write_bytes(os.urandom(8 << 20))
        wait_reason(node, "secondary-full", "No space left")
        node.wait_for(lambda: "rpo" in [r["code"] for r in report(node)["reasons"]], "rpo")
        assert report(node)["rpo_s"] == 1
        (primary / "large").unlink()
        wait_healthy(node)
        node.ok("stop", "photos")
        assert node.stop() == 0


@pytest.mark.timeout(300)
def test_what_failed_holds_the_mark_and_is_named(node):  # noqa: F811
    primary, copy = node.session("photos")
    (primary / "closed").mkdir()
    (primary / "closed" / "a").write_text("1")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for_file(copy / "closed" / "a", "1")
    wait_healthy(node)
    if subprocess.run(["chattr", "+i", copy / "closed"], check=False, capture_output=True).returncode:
        missing("chattr +i is not possible here")
    try:
        (primary / "closed" / "b").write_text("2")
        found = wait_reason(node, "failures", "closed")
        assert found["status"] == "Active"  # everything else goes on
        assert found["lag_s"] > 0
    finally:
        subprocess.run(["chattr", "-i", copy / "closed"], check=True)
    wait_healthy(node)
    node.wait_for_file(copy / "closed" / "b", "2")
    assert node.stop() == 0


@pytest.mark.timeout(200)
def test_as_people_see_it(node, monkeypatch):  # noqa: F811
    primary, copy = node.session("photos")
    node.session("a-session-with-a-name-that-is-rather-long-for-a-column")
    node.monitor()
    node.ok("start", "photos")
    (primary / "a").write_text("1")
    node.wait_for_file(copy / "a", "1")
    wait_healthy(node)
    several, block = node.ok("status"), node.ok("status", "photos", "--detail")
    assert all(len(line) <= 80 for line in (several + block).splitlines())
    assert "Active" in several
    assert "Created" in several
    for column in (
        "PRIMARY NODE", "PRIMARY VOL", "PRIMARY BRICK", "SECONDARY USER", "SECONDARY", "SECONDARY NODE", "STATUS",
        "CRAWL STATUS", "LAST_SYNCED", "LAG", "BACKLOG", "RATE", "ETA", "ENTRY", "DATA", "META", "FAILURES", "HEALTHY",
    ):  # fmt: skip
        assert f"\n  {column} " in block
    done = node.command("status", "--watch")
    assert (done.returncode, "needs a terminal" in done.stderr) == (2, True)
    code = "import sys; from seamark.cli import main; sys.exit(main(['status', '--watch']))"
    terminal = Terminal(code, columns=80, lines=24, env=node.environment)

    def until(words):
        deadline = time.monotonic() + 60
        while words not in "\n".join(terminal.screen.display):
            assert time.monotonic() < deadline, "\n".join(terminal.screen.display)
            assert terminal.read(0.2)

    until("Problem: none")
    until("2 sessions, none unhealthy")
    os.kill(node.pids("photos")["beat"], signal.SIGSTOP)
    until("Problem: beat")
    until("1 not healthy")
    os.kill(node.pids("photos")["beat"], signal.SIGCONT)
    until("2 sessions, none unhealthy")
    os.write(terminal.master, b"\x03")
    assert terminal.wait(30) == 130
    assert not terminal.screen.cursor.hidden
    assert "Traceback" not in "\n".join(terminal.lines())
    assert node.stop() == 0


@pytest.mark.timeout(200)
def test_a_run_in_the_foreground_is_seen_too(node):  # noqa: F811
    primary = node.base / "p"
    primary.mkdir()
    (primary / "a").write_text("1")
    (node.base / "monitor.log").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "seamark", "run", "--name", "once", "--no-progress", primary, node.base / "copy"],
        env=node.environment, cwd="/",
    )  # fmt: skip
    try:
        node.wait_for((node.state / "sessions" / "once" / "status.json").exists, "a report")
        node.wait_for(lambda: report(node, "once")["last_synced"] is not None, "a mark")
        node.wait_for(lambda: report(node, "once")["healthy"] is True, "healthy")
        assert report(node, "once")["desired"] == "run"
    finally:
        process.terminate()
        process.wait(60)
    assert report(node, "once")["status"] == "Stopped"
    assert report(node, "once")["last_synced"] is not None
