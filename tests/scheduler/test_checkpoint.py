"""Checkpoints of running sessions: reached means that everything older is there, by the judge's word."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from scheduler.checkpointing import parse_time
from tests.judge import assert_same
from tests.scheduler.test_monitor import node  # noqa: F401


def last(node, *words):  # noqa: F811
    return json.loads(node.ok("checkpoint", "photos", *words, "--json").splitlines()[-1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("detector", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
def test_reached_means_that_everything_older_is_there(node, detector):  # noqa: F811
    primary, copy = node.session("photos", "--set", f"change-detector={detector}")
    assert node.command("checkpoint", "photos", "wait").returncode == 4
    assert node.command("checkpoint", "nobody", "now").returncode == 4
    node.monitor()
    node.ok("start", "photos")
    (primary / "first").write_text("1")
    node.wait_for_file(copy / "first", "1")
    written, stop = [], threading.Event()

    def write():
        while not stop.is_set():
            number = len(written)
            # Over what was there, in one step: a file that is cut first may be seen empty.
            fd = os.open(primary / f"f{number % 300}", os.O_WRONLY | os.O_CREAT)
            os.write(fd, b"%010d" % number)
            os.close(fd)
            written.append(number)
            time.sleep(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            time.sleep(1)
            before = len(written)
            asked = last(node, "now")
            assert last(node, "wait", "--timeout", "2m")["id"] == asked["id"]
            # Should the primary be lost now, this is what is known.
            known = json.loads(node.ok("failover", copy, "--dry-run", "--json").splitlines()[0])
            assert known["mark"] >= asked["time"]
            for number in range(max(0, before - 300), before):
                # the same file may have been written again since
                assert int((copy / f"f{number % 300}").read_text()) >= number, number
    finally:
        stop.set()
        writer.join()
    assert last(node, "now")["completed"] in (True, False)
    node.ok("checkpoint", "photos", "wait")
    assert_same(primary, copy)
    assert "CHECKPOINT COMPLETED       Yes" in node.ok("status", "photos", "--detail")
    done = last(node, "list")
    assert done["completed"]
    assert done["completion_time"] >= done["time"]
    assert node.stop() == 0


@pytest.mark.timeout(300)
def test_what_is_not_there_is_not_reached(node):  # noqa: F811
    primary, copy = node.session("photos")
    node.monitor()
    node.ok("start", "photos")
    (primary / "a").write_text("1")
    node.wait_for_file(copy / "a", "1")
    node.ok("pause", "photos")
    (primary / "b").write_text("2")
    assert not last(node, "now")["completed"]
    late = node.command("checkpoint", "photos", "wait", "--timeout", "5s")
    assert (late.returncode, "was not reached within 5 s" in late.stderr) == (5, True)
    node.ok("resume", "photos")
    node.ok("checkpoint", "photos", "wait", "--timeout", "100s")
    assert (copy / "b").read_text() == "2"
    assert last(node, "2001-01-01T00:00Z")["completed"]
    assert not last(node, "2100-01-01")["completed"]
    for words, says in [
        (("soon",), "is no time"),
        (("now", "--timeout", "3"), "goes with wait"),
        (("wait", "--timeout", "x"), "give seconds"),
    ]:
        done = node.command("checkpoint", "photos", *words)
        assert (done.returncode, says in done.stderr) == (2, True), done
    assert node.stop() == 0


def test_times(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert parse_time("now") is None
        assert parse_time("2026-11-25T12:00:00.000001Z") == 1795608000_000001000
        assert parse_time("2026-11-25T13:00+01:00") == 1795608000 * 10**9
        assert parse_time("2026-11-25T13:00") == 1795608000 * 10**9
    finally:
        monkeypatch.undo()
        time.tzset()
