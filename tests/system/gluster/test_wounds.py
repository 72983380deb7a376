"""What happens to a Gluster volume while it is replicated: bricks, its changelog, its client and the volume itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest

from replication.private import is_mount
from replication.session import SessionDir
from tests.judge import assert_same
from tests.system.gluster.test_primary import KINDS, churn
from tests.system.trees import many_small_files

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]


def said(run, text):
    return any(text in message.get("message", "") for message in run.of_type("log"))


def is_whole(root, files):
    """Whether the users' mount has found all bricks again."""
    with contextlib.suppress(OSError):
        return len([path.stat() for path in root.rglob("f*")]) == files
    return False


def mount_of(place):
    """Where the session has its volume."""
    (session,) = place.state.glob("sessions/*")
    return SessionDir(place.state, session.name).mount


class Writer:
    """Somebody who goes on writing, and does not mind a volume that is away."""

    def __init__(self, root):
        self.root = root
        self.count = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self):
        while not self._end.wait(0.01):
            number = self.count
            try:
                (self.root / f"w{number % 7}").mkdir(exist_ok=True)
                (self.root / f"w{number % 7}" / f"f{number}").write_text(f"{number}" * 50)
                if number % 5 == 4:
                    os.rename(
                        self.root / f"w{number % 7}" / f"f{number}",
                        self.root / f"w{number % 7}" / f"r{number % 11}",
                    )
            except OSError:
                time.sleep(0.1)
                continue
            self.count += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def test_what_is_written_again_within_one_changelog_is_noticed(place):
    """A brick records it once in 15 seconds: of attributes the first that is done to them, whatever follows."""
    root = place.volume(1)
    (root / "file").write_bytes(b"0" * 5000)
    with place.run() as run:
        run.wait_idle()
        with open(root / "file", "r+b", buffering=0) as file:
            for number in range(12):
                os.pwrite(file.fileno(), b"%d" % (number % 10) * 5000, 0)
                os.setxattr(root / "file", "user.count", b"%d" % number)
                if number % 2:
                    os.chmod(root / "file", 0o600 + number)
                else:
                    os.fchmod(file.fileno(), 0o640 + number)
                time.sleep(0.4)
            os.removexattr(root / "file", "user.count")
            os.fchmod(file.fileno(), 0o604)
        began = time.monotonic()
        run.wait_same(timeout=12)
        assert time.monotonic() - began < 12
        assert run.stop() == 0


def test_what_changed_while_it_was_stopped_is_read_from_the_bricks(place):
    root = place.volume(2, **{"changelog.rollover-time": "3"})
    many_small_files(root / "many", 50, 5)
    with place.run() as run:
        run.wait_idle()
        assert run.stop() == 0
    churn(root)
    time.sleep(5)  # the bricks begin another file
    (root / "after").write_text("that")
    with place.run() as run:
        run.wait_same()
        run.wait_for(lambda: run.status.get("phase") == "idle", "rest")
        assert not said(run, "hybrid crawl begins"), run.report()
        assert run.stop() == 0


@pytest.mark.slow
def test_a_killed_agent_loses_nothing_and_compares_nothing(place):
    root = place.volume(1)
    with place.run() as run:
        run.wait_idle()
        with Writer(root) as writer:
            for _ in range(3):
                os.kill(run.pids("agent"), signal.SIGKILL)
                goal = writer.count + 100
                run.wait_for(lambda goal=goal: writer.count > goal, "more files")
        run.wait_same()
        crawls = [message for message in run.of_type("log") if "hybrid crawl begins" in message["message"]]
        assert len(crawls) == 1, run.report()
        assert run.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_what_changed_while_the_changelog_was_off_is_searched_for(place, stopped):
    """By the ctimes of the bricks' inodes, without a comparison; extended attributes too, for which Gluster sets no ctime."""
    root = place.volume(2, **{"changelog.rollover-time": "2"})
    many_small_files(root / "many", 50, 5)

    def off():
        place.node.ask("volume", "set", place.name, "changelog.changelog", "off")
        churn(root)
        os.setxattr(root / "many" / "d0" / "f10", "user.unseen", b"1")
        place.node.ask("volume", "set", place.name, "changelog.changelog", "on")

    with place.run() as run:
        run.wait_idle()
        (kept,) = place.state.glob("sessions/*/changelog")
        began, count = time.time() + 1, itertools.count()

        def read():
            for _ in range(4):
                (root / f"more{next(count)}").write_text("x")
            time.sleep(0.5)
            return all(found[2] > began for found in json.loads((kept / "bricks.json").read_text()).values())

        place.node.wait_for(read, "changelogs of each brick that were begun and read to their end")
        run.wait_same()
        run.wait_idle()
        if not stopped:
            off()
            run.wait_same()
        assert run.stop() == 0
    if stopped:
        off()
        with place.run() as run:
            run.wait_same()
            assert run.stop() == 0
    begun = [message for message in run.of_type("log") if "hybrid crawl begins" in message["message"]]
    assert len(begun) == (not stopped), run.report()
    assert not said(run, "gap in the changelog"), run.report()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single brick", "distribute 2"])
def test_a_brick_is_killed_under_load(place, kind):
    root = place.volume(*KINDS[kind])
    many_small_files(root / "many", 100, 5)
    with place.run() as run:
        run.wait_idle()
        with Writer(root) as writer:
            place.node.kill_brick(place.name, 0)
            time.sleep(2)
            place.node.start_bricks(place.name, 0)
            goal = writer.count + 50
            run.wait_for(lambda: writer.count > goal, "writes to go on")
        run.wait_same()
        run.wait_for(lambda: run.status.get("failures") == 0, "failures to be mended")
        assert_same(root, place.secondary)
        assert said(run, "what it may not have recorded is searched for"), run.report()
        assert not said(run, "gap in the changelog"), run.report()
        assert run.stop() == 0


def test_names_that_a_killed_brick_did_not_record(place):
    """In the root, to which no name leads; and in a directory of which it recorded something else at the same time."""
    root = place.volume(1, **{"changelog.rollover-time": "2"})
    (root / "many").mkdir()
    for name in ("removed", "many/removed", "many/f"):
        (root / name).write_text("1")
    with place.run() as run:
        run.wait_idle()
        path = place.node.brick(place.name, 0)
        place.node.kill_brick(place.name, 0)
        (path / "removed").rename(path / "renamed")
        (path / "many" / "removed").unlink()
        place.node.start_bricks(place.name, 0)
        run.wait_for(lambda: said(run, "what it may not have recorded is searched for"), "the search")
        place.node.wait_for(lambda: is_whole(root / "many", 1), "the users' mount")
        for number in range(20):
            (root / "many" / f"{number}").write_text("2")
        run.wait_same()
        assert not said(run, "gap in the changelog"), run.report()
        assert run.stop() == 0


@pytest.mark.slow
def test_a_brick_of_a_replica_is_missed_by_nobody(place):
    root = place.volume(*KINDS["replica 2 + arbiter"])
    many_small_files(root / "many", 50, 5)
    with place.run() as run:
        run.wait_idle()
        place.node.kill_brick(place.name, 0)
        time.sleep(1)
        churn(root)
        run.wait_same()
        place.node.start_bricks(place.name, 0)
        (root / "after").write_text("that")
        run.wait_same()
        time.sleep(3)
        assert not said(run, "gap in the changelog"), run.report()
        assert run.stop() == 0


@pytest.mark.slow
def test_a_directory_that_only_a_brick_that_was_away_has_stops_nothing(place):
    """Gluster answers that it is not connected: until that brick is healed, or for good where that put the directory aside."""
    heal = {f"cluster.{name}": "off" for name in ("self-heal-daemon", "entry-self-heal", "data-self-heal", "metadata-self-heal")}  # fmt: skip
    root = place.volume(*KINDS["replica 2 + arbiter"], **heal)
    (root / "stays").mkdir()
    with place.run() as run:
        run.wait_idle()
        assert run.stop() == 0
    (root / "gone").mkdir()
    (root / "gone" / "file").write_text("x")
    gfid = os.getxattr(root / "gone", "glusterfs.gfid.string").decode()
    (root / "stays" / "first").write_text("1")
    place.node.kill_brick(place.name, 0)
    (root / "gone" / "file").unlink()
    (root / "gone").rmdir()
    place.node.start_bricks(place.name, 0)
    (root / "stays" / "second").write_text("2")
    with place.run() as run:
        run.wait_same()
        run.wait_for(lambda: run.status.get("phase") == "idle", "rest")
        mount = mount_of(place)
        with pytest.raises(OSError, match="not connected"):
            os.getxattr(mount / ".gfid" / gfid, "glusterfs.ancestry.path")
        assert run.status["failures"] == 0, run.report()
        assert run.stop() == 0


@pytest.mark.slow
def test_nothing_is_deleted_when_a_part_of_the_volume_is_away(place):
    """A directory is then listed without what lies on that brick, and without an error."""
    root = place.volume(2)
    many_small_files(root / "many", 100, 5)
    with place.run() as run:
        run.wait_idle()
        before = sorted(path.relative_to(place.secondary) for path in place.secondary.rglob("*"))
        place.node.kill_brick(place.name, 1)
        time.sleep(1)
        assert len(list(root.rglob("f*"))) < 100  # that is what Gluster shows
        with contextlib.suppress(OSError):
            (root / "many" / "d0").rename(root / "many" / "renamed")
        assert run.stop() == 0
    for path in place.state.glob("sessions/*/changelog/bricks.json"):
        path.unlink()
    with place.run() as run:
        time.sleep(8)  # a comparison is wanted, and cannot be had
        names = sorted(path.relative_to(place.secondary) for path in place.secondary.rglob("*"))
        assert len(names) >= len(before), run.report()
        place.node.start_bricks(place.name, 1)
        run.wait_same(90)
        assert run.stop() == 0


@pytest.mark.slow
def test_attributes_that_could_not_be_read_are_read_when_their_brick_is_back(place):
    """Their names are looked at again, which says nothing of them: no ctime shows that they changed."""
    root = place.volume(2)
    many_small_files(root / "many", 20, 1)
    with place.run() as run:
        run.wait_idle()
        assert run.stop() == 0
    for path in files_of(root):
        os.setxattr(path, "user.colour", b"blue")
    place.node.kill_brick(place.name, 1)
    with place.run() as run:
        run.wait_for(lambda: run.status.get("failures"), "failures")
        place.node.start_bricks(place.name, 1)
        place.node.wait_for(lambda: is_whole(root / "many", 20), "all bricks")
        run.wait_same(150)
        run.wait_for(lambda: run.status.get("failures") == 0, "failures to be mended", 150)
        assert run.stop() == 0


@pytest.mark.slow
def test_directories_keep_their_attributes_while_a_brick_is_away(place):
    """Of those whose own brick is away Gluster says that nobody may do anything with them."""
    root = place.volume(2)
    for number in range(8):
        (root / f"d{number}").mkdir(mode=0o755)
        os.chown(root / f"d{number}", 1234, 1235)
    with place.run() as run:
        run.wait_idle()
        before = attributes_below(place.secondary)
        place.node.kill_brick(place.name, 0)
        for number in range(40):  # in all of them, where the other brick takes it
            with contextlib.suppress(OSError):
                (root / f"d{number % 8}" / f"f{number}").write_text("x")
        run.wait_for(
            lambda: len(list(place.secondary.rglob("f*"))) or run.status.get("failures"), "the changes"
        )
        run.wait_for(lambda: said(run, "a part of the volume is away"), "what is away to be said")
        assert attributes_below(place.secondary) == before
        place.node.start_bricks(place.name, 0)
        run.wait_same(90)
        run.wait_for(lambda: run.status.get("failures") == 0, "failures to be mended", 90)
        assert not said(run, "refused"), run.report()  # also of the root, to which no name leads
        assert run.stop() == 0


def attributes_below(root):
    return {
        path.name: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in root.glob("d*")
    }


def files_of(root):
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


@pytest.mark.slow
def test_the_volume_is_stopped_and_started(place):
    root = place.volume(2)
    many_small_files(root / "many", 50, 5)
    with place.run() as run:
        run.wait_idle()
        (root / "just before").write_text("x")
        place.node.ask("volume", "stop", place.name, "force")
        time.sleep(6)
        place.node.ask("volume", "start", place.name)
        with Writer(root) as writer:
            run.wait_for(lambda: writer.count > 100, "the users' mount to be there again")
        place.node.wait_for(lambda: is_whole(root / "many", 50), "all bricks")
        (root / "many" / "d0" / "f0").unlink()
        run.wait_same(90)
        assert run.stop() == 0


@pytest.mark.slow
def test_bricks_are_added(place):
    root = place.volume(1)
    many_small_files(root / "many", 50, 5)
    with place.run() as run:
        run.wait_idle()
        place.node.add_bricks(place.name, 1)
        many_small_files(root / "more", 50, 5, seed=2)
        run.wait_same(90)
        run.wait_for(lambda: said(run, "is followed from now on"), "the new brick to be followed")
        run.wait_idle()
        many_small_files(root / "after", 50, 5, seed=3)
        run.wait_same(90)
        assert run.stop() == 0


@pytest.mark.slow
def test_the_client_is_killed(place):
    root = place.volume(1)
    many_small_files(root / "many", 50, 5)
    with place.run() as run:
        run.wait_idle()
        mount = os.fsencode(mount_of(place))
        (client,) = [
            pid for pid in run.children() if mount in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ]
        os.kill(client, signal.SIGKILL)
        churn(root)
        run.wait_same(90)
        run.wait_for(lambda: run.status.get("failures") == 0, "failures to be mended")
        assert run.stop() == 0


@pytest.mark.slow
def test_workers_that_start_while_nothing_is_mounted(place, tmp_path, monkeypatch):
    """What the volume is mounted on is an empty directory then, of another file system: nothing of that is the volume."""
    slowly, bin_dir = tmp_path / "slowly", tmp_path / "bin"
    bin_dir.mkdir()
    real = shutil.which("glusterfs", path=place.node.environment["PATH"])
    (bin_dir / "glusterfs").write_text(f'#!/bin/sh\n[ -e {slowly} ] && sleep 8\nexec {real} "$@"\n')
    (bin_dir / "glusterfs").chmod(0o755)
    root = place.volume(2)
    monkeypatch.setitem(place.node.environment, "PATH", f"{bin_dir}:{place.node.environment['PATH']}")
    many_small_files(root / "many", 200, 5)
    try:
        with place.run() as run:
            run.wait_idle()
            slowly.touch()
            with Writer(root) as writer:
                run.wait_for(lambda: writer.count > 50, "writes")
                mount = mount_of(place)
                (client,) = [
                    pid
                    for pid in run.children()
                    if os.fsencode(mount) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                ]
                os.kill(client, signal.SIGKILL)
                run.wait_for(lambda: not is_mount(mount), "nothing to be mounted")
                for service in ("worker control", "worker data", "agent"):
                    os.kill(run.pids(service), signal.SIGKILL)
                run.wait_for(lambda: is_mount(mount), "the mount")
                slowly.unlink()
                goal = writer.count + 100
                run.wait_for(lambda: writer.count > goal, "more writes")
            run.wait_same(90)
            run.wait_for(lambda: run.status.get("failures") == 0, "failures to be mended")
            assert_same(root, place.secondary)
            assert not said(run, "scanning instead"), run.report()
            assert run.stop() == 0
    finally:
        slowly.unlink(missing_ok=True)


@pytest.mark.slow
def test_scanning_takes_the_place_of_bricks_that_cannot_be_followed_until_they_can(place):
    """An agent has to ask glusterd which bricks there are; the volume needs no glusterd."""
    root = place.volume(2)
    (root / "before").write_text("x")
    with place.run() as run:
        run.wait_idle()
        place.node.stop(bricks=False)
        try:
            os.kill(run.pids("agent"), signal.SIGKILL)
            run.wait_for(lambda: said(run, "cannot be recorded at the moment"), "the agent to say so")
            (root / "meanwhile").write_text("x")
            run.wait_for(lambda: said(run, "scanning instead"), "scanning", 120)
            run.wait_same(90)
        finally:
            place.node.start()
        run.wait_for(lambda: detector(place) == "changelogs", "the bricks to be followed again", 90)
        run.wait_idle()
        many_small_files(root / "many", 50, 5)
        run.wait_same(30)
        assert run.stop() == 0


@pytest.mark.slow
def test_what_scans_could_not_see_is_found_when_the_bricks_are_followed(place):
    """An extended attribute leaves the ctime that clients see as it was."""
    root = place.volume(2)
    many_small_files(root / "many", 20, 5)
    with place.run("--change-detector", "scan") as run:
        run.wait_idle()
        os.setxattr(root / "many" / "d0" / "f10", "user.unseen", b"1")
        (root / "later").write_text("x")
        run.wait_for((place.secondary / "later").exists, "a scan", 120)
        run.wait_idle()
        assert run.stop() == 0
    assert "user.unseen" not in os.listxattr(place.secondary / "many" / "d0" / "f10")
    with place.run() as run:
        run.wait_same()
        assert run.stop() == 0


def detector(place):
    (session,) = place.state.glob("sessions/*")
    return SessionDir(place.state, session.name).detector()


@pytest.mark.slow
def test_a_directory_of_a_volume(place):
    root = place.volume(2)
    (root / "shared" / "data").mkdir(parents=True)
    many_small_files(root / "shared" / "data" / "many", 50, 5)
    (root / "elsewhere").write_text("foreign")
    with place.run(below="shared/data") as run:
        run.wait_idle()
        (root / "top").write_text("foreign")
        churn(root / "shared" / "data")
        os.rename(root / "shared" / "data" / "moved", root / "out")
        os.rename(root / "elsewhere", root / "shared" / "data" / "in")
        os.setxattr(root / "shared" / "data", "user.root", b"1")
        run.wait_same()
        assert not (place.secondary / "top").exists()
        os.rename(root / "shared", root / "shared2")  # it is not there any more: nothing is deleted
        time.sleep(3)
        assert (place.secondary / "in").exists()
        os.rename(root / "shared2", root / "shared")
        (root / "shared" / "data" / "back").write_text("again")
        run.wait_same()
        run.stop()


@pytest.mark.slow
def test_what_no_changelog_says_is_found_by_the_periodic_comparison(place):
    root = place.volume(1, **{"changelog.rollover-time": "3"})
    for name in ("longer", "hole", "zeros", "untouched"):
        (root / name).write_bytes(b"x" * 1_000_000)
    with place.run() as run:
        run.wait_idle()
        time.sleep(8)  # the file of the changelog that has them is closed
        _fallocate(root / "longer", "--length", "2000000")
        _fallocate(root / "hole", "--punch-hole", "--offset", "131072", "--length", "262144")
        _fallocate(root / "zeros", "--zero-range", "--offset", "131072", "--length", "262144")
        (database,) = place.state.glob("sessions/*/progress.sqlite")
        with contextlib.closing(sqlite3.connect(database, timeout=10)) as db, db:
            db.execute("UPDATE brick SET scan_ns = 0")  # the comparison is due
        run.wait_same()
        assert said(run, "periodic look for what was not recorded"), run.report()
        assert run.stop() == 0


def _fallocate(path, *words):
    done = subprocess.run(["fallocate", *words, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "not supported" in done.stderr, done.stderr
