"""The checks before a session is made: each says what it found, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack

import msgspec
import pytest

from replication.remote.look import claim
from replication.session import Session, SessionDir, SessionState, pair_id
from replication.settings import SessionConfig
from replication.volume.identity import identify_fd
from scheduler.checks import room
from scheduler.checks.features import check_features, check_programs, check_rights
from scheduler.checks.outcome import Level
from scheduler.checks.way import clock
from tests.filesystems import available, filesystem
from tests.scheduler.test_monitor import Node

ALL = dict.fromkeys(("links", "symlinks", "fifo", "xattr", "acl", "holes", "bytes", "case", "tmpfile"), True)
FACTS = {
    "can": {**ALL, "time_ns": 1, "chown": True, "mknod": True, "trusted": True}, "fs": {"type": "ext4"},
    "name_max": 255, "user": "u", "rsync": "rsync 3", "tar": "tar 1", "free_bytes": 10, "free_inodes": None,
}  # fmt: skip
HAS = {"type": "xfs", "name_max": 255, "can": {**ALL, "time_ns": 1}}


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    (tmp_path / "p").mkdir()
    return made


def create(node, server, *more, path=None, name="s"):
    where = f"{server.user}@{server.host}:{path or node.base / 'copy'}"
    return node.command("create", name, node.base / "p", where, "--ssh-port", server.port, *more)


def trust(server):
    return "--identity", server.identity, "--accept-new-host-key"


def failed(done):
    return [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("[FAIL]")]


def test_a_dry_run_shows_all_and_leaves_nothing(node, shared_ssh_server):
    done = create(node, shared_ssh_server, *trust(shared_ssh_server), "--dry-run")
    assert done.returncode == 0, done
    shown = [line[7:].split(":")[0] for line in done.stdout.splitlines()]
    wanted = ["primary", "ssh", "host key", "login", "Python", "clock", "secondary", "rights", "rsync", "tar"]
    assert list(dict.fromkeys(shown)) == [*wanted, "file system", "room"], done.stdout
    assert os.listdir(node.base) == ["p"]


def test_created_it_keeps_the_host_key_that_was_accepted(node, shared_ssh_server):
    assert create(node, shared_ssh_server, *trust(shared_ssh_server)).returncode == 0
    known = (node.state / "sessions" / "s" / "known_hosts").read_text()
    assert known.split()[2] == (shared_ssh_server.directory / "host_key.pub").read_text().split()[1]
    assert not (node.base / "copy").exists()


def test_a_secondary_that_this_pair_has_filled_is_its_own_on_any_node(node):
    """Its state here was lost, or another node sees the same primary: nothing is to be adopted."""
    primary, copy = str(node.base / "p"), node.base / "copy"
    fd = os.open(primary, os.O_RDONLY)
    volume = identify_fd(fd)[0].hex()
    os.close(fd)
    config, state = (
        SessionConfig(primary=primary, secondary=str(copy)),
        SessionState(id=pair_id(primary, str(copy))),
    )
    session = Session.of("first", config, msgspec.structs.replace(state, root=volume))
    copy.mkdir()
    claim(SessionDir(node.base / "another state", "first"), session, epoch=1, takes=0)
    assert json.loads((copy / ".seamark" / "owner").read_text())["holder"] == session.instance
    node.ok("create", "s", primary, copy)
    (node.base / "p").rename(node.base / "elsewhere")
    (node.base / "p").mkdir()  # another volume under the same paths
    node.ok("delete", "s")
    done = node.command("create", "s", primary, copy)
    assert done.returncode == 8, done
    assert "a copy of another volume" in done.stderr


def test_each_step_of_the_way_can_fail(node, shared_ssh_server, tmp_path):
    server, stranger = shared_ssh_server, tmp_path / "stranger"
    os.system(f"ssh-keygen -q -t ed25519 -N '' -f {stranger}")
    for more, path, step, code in [
        (("--identity", server.identity), None, "host key", 1),
        (("--identity", stranger, "--accept-new-host-key"), None, "login", 1),
        (trust(server), node.base / "no" / "way", "secondary", 1),
    ]:
        done = create(node, server, *more, path=path)
        assert (done.returncode, failed(done)) == (code, [f"[FAIL] {step}"]), done
        assert not (node.state / "config").exists()
    done = node.command("create", "s", node.base / "p", "127.0.0.1:/copy", "--ssh-port", 1)
    assert (done.returncode, failed(done)) == (5, ["[FAIL] ssh"])
    assert (
        node.command("create", "s", node.base / "p", "127.0.0.1:/copy", "--ssh-port", 1, "--force").returncode
        == 0
    )
    assert "s" in node.ok("list")


def test_what_no_force_helps_against(node):
    (node.base / "full").mkdir()
    (node.base / "full" / "theirs").write_text("x")
    for where, code, says in [
        (node.base / "full", 2, "--adopt"),
        (node.base / "p" / "in", 2, "inside of the primary"),
    ]:
        done = node.command("create", "s", node.base / "p", where, "--force")
        assert (done.returncode, says in done.stderr, "--force" in done.stderr) == (code, True, False), done
    assert node.command("create", "s", node.base / "p", node.base / "full", "--adopt").returncode == 0
    assert os.listdir(node.base / "full") == ["theirs"]


@pytest.mark.root
def test_too_little_room(node):
    if available("tmpfs"):
        pytest.skip("no tmpfs")
    (node.base / "p" / "big").write_bytes(os.urandom(3 << 20))
    with filesystem("tmpfs", node.base / "small", mib=1) as root:
        done = node.command("create", "s", node.base / "p", root)
        assert failed(done) == ["[FAIL] room"]
        assert "the primary uses 3.0 MiB" in done.stdout
        assert "--force creates it all the same" in done.stderr
        assert node.command("create", "s", node.base / "p", root, "--force").returncode == 0


def test_room_is_counted_as_far_as_time_allows(tmp_path):
    for d in range(3):
        (tmp_path / str(d)).mkdir()
        (tmp_path / str(d) / "f").write_bytes(os.urandom(100_000))
    os.link(tmp_path / "0" / "f", tmp_path / "1" / "again")
    whole = room.used_by(str(tmp_path))
    assert whole.complete and whole.inodes == 6 and 300_000 <= whole.bytes < 400_000
    part = room.used_by(str(tmp_path), patience_s=-1)
    assert not part.complete and part.bytes < whole.bytes < part.most


@pytest.mark.root
def test_a_directory_that_is_mounted_elsewhere_is_not_its_file_system(tmp_path):
    with filesystem("tmpfs", tmp_path / "whole", mib=8) as root, ExitStack() as stack:
        (root / "much").write_bytes(os.urandom(4 << 20))
        (root / "part").mkdir()
        (root / "part" / "f").write_bytes(os.urandom(100_000))
        here = tmp_path / "a part"
        here.mkdir()
        subprocess.run(["mount", "--bind", root / "part", here], check=True)
        stack.callback(subprocess.run, ["umount", here], check=True)
        assert room.used_by(str(here)).bytes < 200_000
        assert room.used_by(str(root)).bytes > 4 << 20


@pytest.mark.parametrize("lacks", ["links", "symlinks", "fifo", "xattr", "acl", "holes", "bytes"])
def test_what_the_secondary_cannot_keep_is_said(lacks):
    facts = {**FACTS, "can": {**FACTS["can"], lacks: False}}
    (outcome,) = check_features(HAS, facts)
    assert outcome.level is Level.WARN
    without = {**HAS, "can": {**HAS["can"], lacks: False}}
    assert [o.level for o in check_features(without, facts)] == [Level.OK]  # the primary has none either


def test_names_times_and_rights():
    for changed, level, says in [
        ({"case": False}, Level.FAIL, "upper from lower case"),
        ({"time_ns": 2_000_000_000}, Level.WARN, "steps of 2 s"),
    ]:
        (outcome,) = check_features(HAS, {**FACTS, "can": {**FACTS["can"], **changed}})
        assert (outcome.level, says in outcome.says) == (level, True)
    (outcome,) = check_features(HAS, {**FACTS, "name_max": 143})
    assert (outcome.level, "143" in outcome.says) == (Level.WARN, True)
    some = {**FACTS, "can": {**FACTS["can"], "chown": False, "trusted": False}}
    assert [(o.level, "will not be kept" in o.says) for o in check_rights(some)] == [(Level.WARN, True)] * 2
    (outcome,) = check_rights({**FACTS, "can": None, "refused": "Read-only file system"})
    assert (outcome.level, "Read-only" in outcome.says) == (Level.FAIL, True)


def test_programs_are_wanted_by_those_who_use_them():
    class Session:
        sync_method = "auto"

    session, facts = Session(), {**FACTS, "rsync": None, "tar": None}
    assert [o.level for o in check_programs(session, facts)] == [Level.WARN]
    for session.sync_method, levels in [("stream", []), ("tar", [Level.FAIL]), ("rsync", [Level.FAIL])]:
        assert [o.level for o in check_programs(session, facts)] == levels


def test_clocks_are_compared_against_the_round_trip():
    class Client:
        def __init__(self, ahead):
            self.ahead = ahead

        def ping(self):
            return time.time_ns() + self.ahead

    assert clock(Client(0)).level is Level.OK
    assert clock(Client(500_000_000)).level is Level.OK
    late = clock(Client(-3_000_000_000))
    assert (late.level, "behind" in late.says) == (Level.WARN, True)
