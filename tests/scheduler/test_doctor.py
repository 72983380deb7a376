"""doctor: nothing to say of a session that is well, and the right thing of one that is not."""

from __future__ import annotations

import json
import os
import signal

from tests.scheduler.test_monitor import node  # noqa: F401


def rows(node, code):  # noqa: F811
    done = node.command("doctor", "photos", "--json")
    assert done.returncode == code, done
    return {row["name"]: (row["level"], row["says"]) for row in map(json.loads, done.stdout.splitlines())}


def health(node):  # noqa: F811
    done = node.command("doctor", "photos", "--json")
    return next(row["level"] for row in map(json.loads, done.stdout.splitlines()) if row["name"] == "health")


def test_a_session_from_health_to_ruin(node):  # noqa: F811
    primary, copy = node.session("photos", "--set", "change_detector=scan")
    found = rows(node, 1)
    assert found["monitor"][0] == "fail" and "seamark monitor" in found["monitor"][1]
    node.monitor()
    node.wait_for(lambda: (node.state / "monitor" / "monitor.sock").exists(), "the monitor")
    found = rows(node, 1)
    assert found["session"] == ("fail", "is created, so nothing is replicated: seamark start photos")
    (primary / "a").write_text("1")
    node.ok("start", "photos")
    node.wait_for_file(copy / "a", "1")
    found = rows(node, 0)
    assert {level for level, _ in found.values()} <= {"ok", "warn"}, found
    assert {
        "settings",
        "state",
        "failures",
        "monitor",
        "session",
        "Redis",
        "health",
        "changes",
        "room",
    } <= set(found)
    report = json.loads((node.state / "sessions" / "photos" / "status.json").read_text())
    os.kill(report["pid"], signal.SIGSTOP)
    node.wait_for(lambda: health(node) == "fail", "a session that hangs to be noticed")
    os.kill(report["pid"], signal.SIGCONT)
    node.ok("pause", "photos")
    assert rows(node, 0)["session"][0] == "warn"
    node.ok("stop", "photos")
    assert rows(node, 1)["session"][1].startswith("is stopped")
    (node.state / "sessions" / "photos" / "state.json").write_text("{")
    assert rows(node, 1)["state"][0] == "fail"
    (node.state / "config" / "sessions" / "photos.toml").write_text("jobs = ")
    assert list(rows(node, 1)) == ["settings"]
    assert node.stop() == 0
