"""Drills of whole sessions: by hand, over ssh, by a key of the session's own, and by themselves; replication goes on meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.judge import assert_same
from tests.scheduler.test_monitor import node  # noqa: F401
from tests.scheduler.test_snapshots import same_but_for_the_mark
from tests.secondary.roots import root_of
from tests.secondary.test_views import left

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def copy(tmp_path):
    with root_of("xfs", tmp_path / "fs") as made:
        yield made


def begin(node, copy, where=None, *words):  # noqa: F811
    """A session that replicates to a root on XFS; its primary."""
    primary = copy.parent / "primary"
    primary.mkdir()
    for number in range(50):
        (primary / f"f{number}").write_bytes(b"%d" % number * 1000)
    node.ok("create", "photos", primary, where or copy, *words)
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: (copy / "f49").exists(), "the copy")
    node.ok("checkpoint", "photos", "now")
    node.ok("checkpoint", "photos", "wait", "--timeout", "60s")
    return primary


def status(node):  # noqa: F811
    return json.loads(node.ok("status", "photos", "--json"))


def events(node):  # noqa: F811
    log = "".join(path.read_text() for path in (node.state / "logs").iterdir())
    return [word for word in ("drill-passed", "drill-failed") if f'"event": "{word}"' in log]


@pytest.mark.slow
def test_by_hand_while_it_replicates(node, copy):  # noqa: F811
    primary = begin(node, copy)
    stop = threading.Event()

    def write():
        number = 0
        while not stop.wait(0.01):
            number += 1
            (primary / f"w{number % 40}").write_bytes(b"%d" % number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = node.base / "report"
        said = node.ok(
            "drill",
            "photos",
            "--check",
            'echo "$PWD"; test -f f49 && echo damage > f49 && rm f1',
            "--report",
            report,
        )
        found = json.loads(node.ok("drill", "photos", "--check", "cat f49 | wc -c", "--json"))
        failed = node.command("drill", "photos", "--check", "echo why not; exit 7", "--json")
    finally:
        stop.set()
        writer.join()
    assert report.read_text() == said
    assert "drill of session photos: passed" in said
    assert "/.seamark/views/new." in said  # where it was
    assert (found["passed"], found["check_exit_code"], found["check_output"]) == (True, 0, "2000\n")
    assert found["view"]["method"] == "reflink"
    assert found["view"]["frozen"]
    assert found["view"]["files"] >= 50
    assert 0 <= found["mark_age_s"] < 60
    assert found["mark"] <= found["started"] <= found["ended"]
    assert found["lost"]["failures"] == 0
    failed_report = json.loads(failed.stdout)
    assert (failed.returncode, failed_report["passed"]) == (1, False)
    assert failed_report["reason"] == "the check ended with 7: why not"
    assert left(copy) == []
    # It is in the status; and since the check was none of the session's own, the session is as healthy as before.
    detail = node.ok("status", "photos", "--detail")
    assert ", FAILED: the check ended with 7: why not" in " ".join(detail.split())
    node.wait_for(lambda: status(node)["healthy"], lambda: f"health: {status(node)['reasons']}")
    node.wait_for(lambda: len(events(node)) == 2, "events")
    node.ok("checkpoint", "photos", "now")
    node.ok("checkpoint", "photos", "wait", "--timeout", "60s")
    assert_same(primary, copy)
    for words, code, says in [
        (("--method", "overlay"), 0 if _overlay_is_possible(copy) else 1, ""),
        (("--method", "btrfs"), 1, "possible: reflink"),
        (("--keep", "--discard"), 2, "goes alone"),
        (("--json", "--report", "-"), 2, "standard output"),
        (("--timeout", "8d", "--check", "true"), 2, "7d at most"),
        (("--timeout", "1", "--check", "sleep 60"), 1, "did not end within 1 s"),
    ]:
        done = node.command("drill", "photos", *words)
        assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done
    assert node.stop() == 0
    # A session that is stopped can be drilled as well: it is then that it is needed.
    node.ok("drill", "photos", "--check", "test -f f49")


def _overlay_is_possible(copy):
    return os.stat(copy).st_dev == os.stat(copy.parent).st_dev


def test_a_kept_view_and_one_whose_drill_is_killed(node, copy):  # noqa: F811
    primary = begin(node, copy)
    kept = json.loads(node.ok("drill", "photos", "--keep", "--json"))["kept"]
    same_but_for_the_mark(primary, kept)
    process = subprocess.Popen(
        [sys.executable, "-m", "seamark", "drill", "photos", "--check", f"touch {node.base}/begun; exec sleep 600"],
        env=node.environment, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    node.wait_for(lambda: (node.base / "begun").exists(), "the check")
    assert node.command("drill", "photos").returncode == 8
    process.send_signal(signal.SIGKILL)
    process.wait()
    node.wait_for(lambda: left(copy) == [str(Path(kept).parent)], lambda: f"only the kept one: {left(copy)}")
    same_but_for_the_mark(primary, kept)
    assert "1 views thrown away" in node.ok("drill", "photos", "--discard")
    assert left(copy) == []
    assert node.stop() == 0


@pytest.mark.slow
def test_over_ssh_and_by_a_key_that_opens_no_shell(node, copy, ssh_server):  # noqa: F811
    where = f"{ssh_server.user}@{ssh_server.host}:{copy}"
    words = ("--ssh-port", ssh_server.port, "--identity", ssh_server.identity, "--accept-new-host-key")
    primary = begin(node, copy, where, *words)
    found = json.loads(node.ok("drill", "photos", "--check", "test -f f49; id -u", "--json"))
    assert found["check_output"] == f"{os.geteuid()}\n"
    node.ok("push-pem", "photos", "--identity", ssh_server.identity)
    refused = node.command("drill", "photos", "--check", f"touch {node.base}/ran", "--json")
    assert (refused.returncode, "runs no commands" in json.loads(refused.stdout)["reason"]) == (1, True), (
        refused
    )
    assert not (node.base / "ran").exists()
    kept = json.loads(node.ok("drill", "photos", "--keep", "--json"))
    assert kept["passed"]
    same_but_for_the_mark(primary, kept["kept"])
    node.ok("drill", "photos", "--discard")
    assert left(copy) == []
    assert node.stop() == 0


def test_the_gate_runs_no_check_and_keeps_what_is_to_be_kept(copy, tmp_path):
    """Whoever has the session's own key, and makes up requests by itself."""
    from replication.remote.answers import SecondaryError
    from tests.secondary.primary import Far
    from tests.secondary.test_snapshots import take

    gated = "import sys\nfrom replication.secondary.__main__ import serve\nsys.exit(serve(sys.argv[-1].encode(), limited=True))"
    with Far(copy) as client:
        snapshot = take(client, keep="24h hourly")
    with Far(copy, start=["-c", gated]) as client:
        client.finish("view", method="auto")
        with pytest.raises(SecondaryError) as caught:
            client.call("view_check", command=f"touch {tmp_path}/ran", timeout_s=9)
        assert caught.value.code == "permission"
        with pytest.raises(SecondaryError) as caught:
            client.finish("snapshot_remove", name=snapshot["name"], force=True)
        assert caught.value.code == "kept"
        # Nor by saying that nothing is to be kept.
        for _ in range(3):
            removed = client.finish(
                "snapshot", keep="1m all", mark='{"stime_ns": 1, "front": 1, "epoch": 1}'
            )["removed"]
            assert snapshot["name"] not in removed
    assert not (tmp_path / "ran").exists()
    assert (copy / ".seamark" / "snapshots" / snapshot["name"] / "root").is_dir()


@pytest.mark.slow
def test_by_itself(node, copy):  # noqa: F811
    """At the times of drill.at; one that fails is a reason not to be healthy, until one passes."""
    asked = copy.parent / "asked"
    check = f"echo x >> {asked}; test -f good"
    primary = begin(node, copy, None, "--set", "drill.at=* * * * *", "--set", f"drill.check={check}")

    def reasons():
        return {reason["code"]: reason["text"] for reason in status(node)["reasons"]}

    node.wait_for(lambda: "drill" in reasons(), "a drill that fails", 120)
    assert "the last drill failed: the check ended with 1" in reasons()["drill"]
    assert status(node)["status"] == "Active"
    assert status(node)["drill"]["passed"] is False
    assert asked.read_text().startswith("x\n")
    (primary / "good").write_text("1")
    node.wait_for_file(copy / "good", "1")
    node.wait_for(lambda: "drill" not in reasons(), "a drill that passes", 120)
    assert status(node)["drill"]["passed"] is True
    assert left(copy) == []
    node.wait_for(lambda: len(events(node)) == 2, "events")
    assert node.stop() == 0
    assert_same(primary, copy)


def test_before_there_is_anything(node):  # noqa: F811
    node.session("photos")
    done = node.command("drill", "photos")
    assert (done.returncode, "has no mark yet" in done.stderr) == (1, True), done
    assert node.command("drill", "nobody").returncode == 4
