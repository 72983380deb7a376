"""Snapshots of whole sessions: taken when a checkpoint is reached, by itself or by hand, and out of the primary's reach."""

from __future__ import annotations

import json

import pytest

from tests.conftest import missing
from tests.filesystems import available
from tests.judge import mtree_differences, rsync_differences
from tests.scheduler.test_monitor import node  # noqa: F401
from tests.secondary.roots import root_of

pytestmark = pytest.mark.root


def listed(node):  # noqa: F811
    return [json.loads(line) for line in node.ok("snapshots", "photos", "list", "--json").splitlines()]


def same_but_for_the_mark(primary, copy):
    """The judges agree. Both roots have the mark, each as of when it was copied or written last."""
    assert set(rsync_differences(primary, copy)) <= {".d........x ./"}
    assert mtree_differences(primary, copy) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["btrfs subvolume", pytest.param("xfs", marks=pytest.mark.slow)])
def test_a_checkpoint_that_is_reached_has_a_snapshot(node, kind, tmp_path):  # noqa: F811
    with root_of(kind, tmp_path / "fs") as copy:
        primary = copy.parent / "primary"
        primary.mkdir()
        (primary / "a").write_text("1")
        node.ok(
            "create", "photos", primary, copy, "--set", "checkpoint_every=1h", "--set", "snapshot_keep=1h all"
        )
        node.ok("config", "photos", "set", "checkpoint_snapshot", "true")
        assert node.command("snapshots", "photos").returncode == 4
        node.monitor()
        node.ok("start", "photos")
        node.wait_for(
            lambda: node.command("snapshots", "photos", "--json").stdout, "the first, by itself", 90
        )
        (first,) = listed(node)
        past = copy / ".seamark" / "snapshots" / first["name"] / "root"
        assert (past / "a").read_text() == "1"
        (primary / "a").write_text("encrypted")
        (primary / "b").write_text("2")
        asked = json.loads(node.ok("checkpoint", "photos", "now", "--json"))
        node.ok("checkpoint", "photos", "wait", "--timeout", "60s")
        node.wait_for(lambda: len(listed(node)) == 2, "the second, by hand")
        second = listed(node)[1]
        assert second["checkpoint"] == asked["id"]
        assert second["mark"] >= asked["time"]
        assert second["files"] == 2
        same_but_for_the_mark(primary, copy / ".seamark" / "snapshots" / second["name"] / "root")
        assert (past / "a").read_text() == "1"
        detail = node.ok("status", "photos", "--detail")
        assert f"SNAPSHOT                   {second['name']}, up to " in detail
        assert json.loads(node.ok("status", "photos", "--json"))["snapshot"]["name"] == second["name"]
        refused = node.command("snapshots", "photos", "remove", first["name"])
        assert (refused.returncode, "has to be kept until" in refused.stderr) == (1, True), refused
        node.ok("snapshots", "photos", "remove", first["name"], "--force")
        assert first["name"] not in node.ok("snapshots", "photos")
        assert node.command("snapshots", "photos", "remove", "nothing").returncode == 4
        node.ok("config", "photos", "set", "checkpoint_snapshot", "false")
        node.ok("checkpoint", "photos", "now")
        node.ok("checkpoint", "photos", "wait", "--timeout", "60s")
        node.wait_for(
            lambda: "SNAPSHOT                   N/A" in node.ok("status", "photos", "--detail"), "none"
        )
        assert len(listed(node)) == 1
        assert node.stop() == 0


@pytest.mark.timeout(120)
def test_where_there_can_be_none_it_is_said_at_once(node):  # noqa: F811
    if why := available("ext4"):
        missing(why)
    from tests.filesystems import filesystem

    with filesystem("ext4", node.base / "fs", mib=64) as there:
        (node.base / "primary").mkdir()
        words = ("photos", node.base / "primary", there / "copy")
        refused = node.command("create", *words, "--set", "checkpoint_snapshot=true")
        assert (refused.returncode, "reflink=1" in refused.stderr) == (1, True), refused
        node.ok("create", *words)
        (there / "copy").mkdir()
        (node.base / "primary" / "a").write_text("1")
        node.ok("run", "--once", node.base / "primary", there / "other")
        node.monitor()
        node.ok("start", "photos")
        node.wait_for_file(there / "copy" / "a", "1")
        refused = node.command("config", "photos", "set", "checkpoint-snapshot", "true")
        assert (refused.returncode, "reflink=1" in refused.stderr) == (2, True), refused
        assert node.ok("config", "photos", "get", "checkpoint_snapshot") == "false\n"
        assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_that_cannot_be_taken_is_said_until_it_can(node, tmp_path):  # noqa: F811
    with root_of("xfs", tmp_path / "fs") as copy:
        primary = node.base / "primary"
        primary.mkdir()
        (primary / "a").write_text("1")
        node.ok("create", "photos", primary, copy, "--set", "checkpoint_snapshot=true")
        node.monitor()
        node.ok("start", "photos")
        node.wait_for_file(copy / "a", "1")
        (copy / ".seamark" / "snapshots").write_text("in the way")
        node.ok("checkpoint", "photos", "now")
        node.ok("checkpoint", "photos", "wait", "--timeout", "60s")

        def reasons():
            return {
                r["code"]: r["text"] for r in json.loads(node.ok("status", "photos", "--json"))["reasons"]
            }

        node.wait_for(lambda: "snapshot" in reasons(), "a reason")
        assert "the last checkpoint has no snapshot" in reasons()["snapshot"]
        (copy / ".seamark" / "snapshots").unlink()
        node.wait_for(lambda: "snapshot" not in reasons(), "no reason any more", 90)
        assert len(listed(node)) == 1
        assert node.stop() == 0
    log = "".join(path.read_text() for path in (node.state / "logs").iterdir())
    assert '"event": "snapshot-failed"' in log
    assert '"event": "snapshot-taken"' in log


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_failover_to_a_snapshot(node, tmp_path):  # noqa: F811
    """What ransomware did to the primary was replicated, and is undone by that."""
    with root_of("xfs", tmp_path / "fs") as copy:
        primary = copy.parent / "primary"
        primary.mkdir()
        for number in range(30):
            (primary / f"f{number}").write_text(f"{number}")
        node.ok("create", "photos", primary, copy, "--set", "checkpoint_snapshot=true")
        node.monitor()
        node.ok("start", "photos")
        node.ok("checkpoint", "photos", "now")
        node.wait_for(lambda: node.command("snapshots", "photos", "--json").stdout, "a snapshot", 90)
        (good,) = listed(node)
        for number in range(30):
            (primary / f"f{number}").rename(primary / f"f{number}.locked")
            (primary / f"f{number}.locked").write_text("encrypted")
        node.wait_for_file(copy / "f29.locked", "encrypted")
        said = node.ok(
            "drill", "photos", "--snapshot", good["name"], "--check", "grep -qx 7 f7 && ! ls | grep locked"
        )
        assert f"snapshot      {good['name']}" in said
        assert node.command("drill", "photos", "--check", "grep -qx 7 f7").returncode == 1
        assert node.command("drill", "photos", "--snapshot", "nothing").returncode == 4
        node.ok("stop", "photos")
        node.wait_for(
            lambda: node.command("failover", "photos", "--to", good["name"], "-n").returncode == 0, "its end"
        )
        for words, code in (
            (("--planned", "--to", good["name"]), 2), (("--to", "nothing", "--yes"), 4), (("--to", good["name"]), 2),
        ):  # fmt: skip
            assert node.command("failover", "photos", *words).returncode == code, words
        assert (copy / "f29.locked").read_text() == "encrypted"
        said = node.ok("failover", "photos", "--to", good["name"], "--yes")
        assert f"all that came after snapshot {good['name']}" in " ".join(said.split())
        assert sorted(path.name for path in copy.iterdir()) == sorted(
            [".seamark", *(f"f{n}" for n in range(30))]
        )
        assert [(copy / f"f{n}").read_text() for n in range(30)] == [f"{n}" for n in range(30)]
        (kept,) = (copy / ".seamark" / "displaced").iterdir()
        assert (kept / "f29.locked").read_text() == "encrypted"
        # It is a primary now, and its past is there as before, by the session's name and by the path.
        assert good["name"] in node.ok("snapshots", "photos")
        assert good["name"] in node.ok("snapshots", copy)
        assert "nothing to do" in node.ok("failover", copy, "--to", good["name"], "--yes")
        assert node.command("snapshots", node.base).returncode == 4
        assert node.command("snapshots", "nothing").returncode == 4
        refused = node.command("snapshots", copy, "remove", good["name"])
        assert (refused.returncode, "has to be kept until" in refused.stderr) == (1, True), refused
        node.ok("snapshots", copy, "remove", good["name"], "--force")
        assert node.ok("snapshots", "photos", "--json") == ""
        assert node.stop() == 0
