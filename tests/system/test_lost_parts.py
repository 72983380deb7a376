"""Parts that are lost: the state directory, what the secondary keeps, Redis, the secondary itself; judged by rsync and mtree."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from replication.secondary import layout
from replication.session import SessionDir
from tests.judge import assert_same, differences, rsync_differences
from tests.killing import kill_at_each, run_killed
from tests.scheduler.test_monitor import node  # noqa: F401
from tests.sshd import ssh_server  # noqa: F401
from tests.system.trees import many_small_files

pytestmark = pytest.mark.timeout(300)
RECOVER = """
import sys
from seamark.cli import main
import replication.kept, replication.remote.launch, replication.remote.look, scheduler.checks.pair
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(sys.argv[1:]))
"""


def status(node, name):  # noqa: F811
    return json.loads(node.ok("status", name, "--json"))


def report(node, name):  # noqa: F811
    """What the session's process said last."""
    path = node.state / "sessions" / name / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def mark(node, name):  # noqa: F811
    """The mark, in seconds."""
    return report(node, name).get("snapshot", {}).get("stime") or 0.0


def sent(node, name):  # noqa: F811
    """Bytes of content that had to travel since Redis was started."""
    return report(node, name).get("counters", {}).get("bytes_sent", 0)


def filled(node, name="photos", *options):  # noqa: F811
    """A session that has replicated some files, and has its mark; the monitor runs."""
    primary, copy = node.session(name, *options)
    many_small_files(primary, 200, 5)
    (primary / "large").write_bytes(os.urandom(3_000_000))
    node.monitor()
    node.ok("start", name)
    settle(node, primary, copy)
    return primary, copy


def settle(node, primary, copy):  # noqa: F811
    node.wait_for(lambda: copy.exists() and not rsync_differences(primary, copy), "the copy")


def stopped(node, name):  # noqa: F811
    node.ok("stop", name, "--now")


# ---- the state directory


@pytest.mark.parametrize("kept", ["nothing", "its file"])
def test_a_session_whose_state_is_lost_is_recovered_from_its_secondary(node, kept):  # noqa: F811
    """Its settings, the filters above all; its mark; nothing is sent again but what changed meanwhile."""
    primary, copy = filled(node, "photos", "--set", "filters=['- *.tmp']", "--set", "jobs=3",
                           "--set", "events.secret=hush")  # fmt: skip
    node.ok("checkpoint", "photos", "now")
    node.ok("checkpoint", "photos", "wait")
    stopped(node, "photos")
    assert node.stop() == 0
    known = json.loads(os.getxattr(copy, mark_attribute(copy)))["stime_ns"] / 1e9
    assert known > 0
    assert "hush" not in (copy / ".seamark" / "session.toml").read_text()
    shutil.rmtree(node.state / "sessions")
    if kept == "nothing":
        shutil.rmtree(node.state / "config")
    (primary / "left out.tmp").write_text("not to be sent")
    (primary / "meanwhile").write_text("changed while it was lost")
    os.rename(primary / "d1", primary / "renamed")
    said = node.ok("recover", "photos", primary, copy)
    assert "session photos recovered" in said
    assert node.ok("config", "photos", "get", "jobs").strip() == "3"
    again = node.command("recover", "photos", primary, copy)
    assert (again.returncode, "nothing of session photos is lost" in again.stderr) == (2, True)
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: mark(node, "photos") > 0, "a mark")
    assert mark(node, "photos") >= known - 1  # inherited: it never went back
    node.wait_for_file(copy / "meanwhile", "changed while it was lost")
    node.wait_for(lambda: (copy / "renamed").exists() and not (copy / "d1").exists(), "the rename")
    assert not (copy / "left out.tmp").exists()
    assert sent(node, "photos") < 10_000, sent(node, "photos")
    (primary / "left out.tmp").unlink()
    node.wait_for(lambda: not rsync_differences(primary, copy), "the rest")
    assert_same(primary, copy)
    assert node.stop() == 0


def mark_attribute(root):
    return next(name for name in os.listxattr(root) if name.endswith(".stime"))


def test_recovery_of_what_is_not_lost_or_not_ours_is_refused(node):  # noqa: F811
    primary, copy = filled(node)
    stopped(node, "photos")
    other = node.base / "other"
    other.mkdir()
    (other / "f").write_text("another volume")
    for words, code, says in [
        (("recover", "again", primary, copy), 8, "session photos replicates the same"),
        (("recover", "photos", other, copy), 2, "choose another name"),
        (("recover", "x", other, copy), 8, "a copy of another volume"),
        (("recover", "x", primary, node.base / "none"), 4, "none"),
        (("recover", "x", primary, other), 4, "no session has a secondary there"),
        (("recover", "x", node.base / "gone", copy), 4, "No such file"),
    ]:
        done = node.command(*words)
        assert (done.returncode, says in done.stderr) == (code, True), (words, done)
        assert len(done.stderr.splitlines()) == 1
    assert node.ok("list").count("\n") <= 2
    assert node.stop() == 0


def test_what_a_secondary_says_at_a_recovery_runs_nothing_here(node):  # noqa: F811
    """Somebody else may have written there since."""
    primary, copy = filled(node)
    stopped(node, "photos")
    assert node.stop() == 0
    shutil.rmtree(node.state)
    kept = copy / ".seamark" / os.fsdecode(layout.SETTINGS)
    owner = copy / ".seamark" / os.fsdecode(layout.OWNER)
    said = kept.read_text(), owner.read_text()
    evil = node.base / "evil"
    kept.write_text(said[0] + f'\n[events]\ncommand = ["touch", "{evil}"]\n')
    for other in (
        "[]",
        '{"session": "../../x", "volume": "v"}',
        '{"session": 5}',
        json.dumps({"session": "0" * 32}),
    ):
        owner.write_text(other)
        refused = node.command("recover", "photos", primary, copy)
        assert refused.returncode in (1, 4), (other, refused)
        assert len(refused.stderr.splitlines()) == 1
    owner.write_text(said[1])
    node.ok("recover", "photos", primary, copy)
    assert "touch" not in node.ok("config", "photos")
    assert str(evil) not in SessionDir(node.state, "photos").named_config.read_text()


@pytest.mark.slow
def test_recovery_of_a_primary_that_was_restored_sends_nothing(node):  # noqa: F811
    """All its inodes are others: it is told, and compared by path."""
    primary, copy = filled(node)
    stopped(node, "photos")
    assert node.stop() == 0
    shutil.rmtree(node.state)
    os.rename(primary, node.base / "old")
    subprocess.run(["cp", "-a", node.base / "old", primary], check=True)
    assert node.command("recover", "photos", primary, copy).returncode == 8
    node.ok("recover", "photos", primary, copy, "--adopt")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: mark(node, "photos") > 0, "a mark")
    node.wait_for(lambda: not differences(primary, copy), "the copy")
    assert sent(node, "photos") == 0
    assert not json.loads((node.state / "sessions/photos/state.json").read_text())["adopt"]
    assert node.stop() == 0


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "most", [pytest.param(2, id="some"), pytest.param(None, id="each", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("left", ["nothing", pytest.param("its file", marks=pytest.mark.slow)])
def test_recovery_killed_at_any_point_is_completed_by_running_it_again(node, left, most):  # noqa: F811
    primary, copy = filled(node, "photos", "--set", "jobs=3")
    stopped(node, "photos")
    assert node.stop() == 0
    words = ["recover", "photos", primary, copy, "--state-dir", node.state]
    file = SessionDir(node.state, "photos").named_config
    text = file.read_text() + "# by hand\n"

    def work(log, point):
        shutil.rmtree(node.state)
        if left == "its file":
            file.parent.mkdir(parents=True)
            file.write_text(text)
        killed, _ = run_killed(RECOVER, words, log, point)
        done = node.command("recover", "photos", primary, copy)
        there = "nothing of session photos is lost" in done.stderr
        assert done.returncode == 0 or (there and done.returncode == 2), done
        state = json.loads((node.state / "sessions/photos/state.json").read_text())
        assert state["root"]
        assert node.ok("config", "photos", "get", "jobs").strip() == "3"
        assert (file.read_text() == text) == (left == "its file")
        return killed

    kill_at_each(f"recover, {left} left", work, node.base / "calls", most)
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: mark(node, "photos") > 0, "a mark")
    assert_same(primary, copy)
    assert sent(node, "photos") == 0
    assert node.stop() == 0


@pytest.mark.slow
def test_a_session_with_a_key_of_its_own_is_recovered_over_ssh_with_a_new_one(node, ssh_server):  # noqa: F811
    primary, copy = node.base / "photos", node.base / "copy"
    primary.mkdir()
    many_small_files(primary, 50, 3)
    where = f"{ssh_server.user}@{ssh_server.host}:{copy}"
    access = [
        "push-pem",
        "--ssh-port",
        ssh_server.port,
        "--identity",
        ssh_server.identity,
        "--accept-new-host-key",
    ]
    node.ok("create", "photos", primary, where, *access, "--set", "sync_method=stream")
    node.monitor()
    node.ok("start", "photos")
    settle(node, primary, copy)
    node.wait_for(lambda: mark(node, "photos") > 0, "a mark")
    stopped(node, "photos")
    assert node.stop() == 0
    shutil.rmtree(node.state)
    assert node.command("recover", "photos", primary, where, "--ssh-port", ssh_server.port).returncode != 0
    node.ok("recover", "photos", primary, where, *access)
    assert node.ok("config", "photos", "get", "sync_method").strip() == '"stream"'
    assert (node.state / "sessions" / "photos" / "id_ed25519").exists()
    shutil.move(ssh_server.authorized_keys, node.base / "not any more")  # no other key gets in
    (primary / "later").write_text("later")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for_file(copy / "later", "later")
    node.wait_for(lambda: mark(node, "photos") > 0, "a mark")
    assert sent(node, "photos") <= len("later")
    assert node.stop() == 0


# ---- what the secondary keeps


def test_a_secondary_without_seamark_is_taken_over_without_sending(node):  # noqa: F811
    primary, copy = filled(node)
    stopped(node, "photos")
    shutil.rmtree(copy / ".seamark")
    node.ok("start", "photos")
    node.wait_for(lambda: "seamark start" in status(node, "photos").get("reason", ""), "a clear line")
    assert not (copy / ".seamark").exists()
    node.ok("start", "photos", "--adopt")
    node.wait_for(
        lambda: not differences(primary, copy) and (copy / ".seamark/owner").exists(), "it to be ours"
    )
    state = node.state / "sessions/photos/state.json"
    node.wait_for(lambda: not json.loads(state.read_text())["adopt"], "the adoption to be over")
    assert sent(node, "photos") == 0
    assert list((copy / ".seamark/displaced").iterdir()) == []
    (primary / "later").write_text("later")
    node.wait_for_file(copy / "later", "later")
    assert node.stop() == 0


# ---- Redis


def redis_of(directory):
    """Processes that work in this directory. (Redis makes its command line anew, and shorter.)"""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(directory):
                found.append(int(link.parent.name))
    return found


@pytest.mark.slow
def test_redis_and_all_that_it_held_is_lost(node):  # noqa: F811
    primary, copy = filled(node)
    directory = node.state / "monitor" / "redis"
    for number in range(3):
        many_small_files(primary / f"more{number}", 300, 3)
        node.wait_for(lambda: redis_of(directory), "Redis to be there (again)")
        for pid in redis_of(directory):
            os.kill(pid, signal.SIGKILL)
        for path in directory.iterdir():
            path.unlink()
        time.sleep(0.5)
    node.wait_for(lambda: not differences(primary, copy), "the copy")
    assert_same(primary, copy)
    assert node.stop() == 0


# ---- the secondary itself


def test_a_secondary_replaced_by_an_empty_one_is_filled_when_told(node):  # noqa: F811
    primary, copy = filled(node)
    stopped(node, "photos")
    before = mark(node, "photos")
    assert before > 0
    shutil.rmtree(copy)
    copy.mkdir()
    node.ok("start", "photos")
    node.wait_for(lambda: "is it mounted?" in status(node, "photos").get("reason", ""), "a clear line")
    assert os.listdir(copy) == []
    node.ok("start", "photos", "--adopt")
    node.wait_for(lambda: not differences(primary, copy), "all of it")
    node.wait_for(lambda: mark(node, "photos") > before, "a mark")
    assert node.stop() == 0


@pytest.mark.parametrize("how", ["copied", pytest.param("copied into place", marks=pytest.mark.slow)])
def test_a_secondary_restored_from_an_older_copy_becomes_right(place, how):
    """A backup of some time ago: its mark is as old as it is, and only what changed since is sent."""
    many_small_files(place.primary, 200, 5)
    (place.primary / "large").write_bytes(os.urandom(2_000_000))
    assert place.once().process.returncode == 0
    backup = place.base / "backup"
    subprocess.run(["cp", "-a", place.secondary, backup], check=True)
    then = json.loads(os.getxattr(backup, mark_attribute(backup)))["stime_ns"]
    time.sleep(0.1)
    for number in range(20):
        (place.primary / "d0" / f"f{number * 5}").write_text(f"changed {number}" * 20)
    (place.primary / "d2" / "f2").unlink()
    (place.primary / "new").write_text("new")
    assert place.once().process.returncode == 0
    assert_same(place.primary, place.secondary)
    if how == "copied":
        shutil.rmtree(place.secondary)
        subprocess.run(["cp", "-a", backup, place.secondary], check=True)
    else:
        subprocess.run(["rsync", "-aHAX", "--delete", f"{backup}/", f"{place.secondary}/"], check=True)
    with place.run() as run:
        run.wait_same()
        run.wait_idle()
        told = [m["message"] for m in run.of_type("log") if "in an older state" in m["message"]]
        assert len(told) == 1, run.report()
        assert 0 < int(told[0].split("its own, ")[1].split(",")[0]) <= then
        assert run.progress()["stime_ns"] > then
        assert run.status["bytes_sent"] < 20_000, run.status
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)
