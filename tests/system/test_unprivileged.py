"""A user without any privilege: everything that this user may do is replicated, and nothing else is promised."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from replication.session import Session
from scheduler.run import _say_what_cannot_be_kept
from tests.judge import assert_same
from tests.system.harness import REPOSITORY
from tests.system.lines import ended, logged, said
from tests.system.trees import ODD_NAMES, many_small_files
from tests.system.unprivileged import NOBODY, as_nobody

pytestmark = pytest.mark.root  # to become somebody else


def what_a_user_has(root):
    """Everything that a user can make, owned by that user."""
    (root / "dir" / "deep").mkdir(parents=True)
    (root / "file").write_bytes(b"content")
    (root / "big").write_bytes(os.urandom(3_000_000))
    os.link(root / "file", root / "dir" / "hard link")
    os.symlink("nowhere", root / "dangling")
    os.mkfifo(root / "fifo")
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(root), name), "wb") as file:
            file.write(name)
    with open(root / "sparse", "wb") as file:
        file.truncate(5_000_000)
    os.setxattr(root / "file", "user.test", b"\0\xff")
    subprocess.run(["setfacl", "-m", "u:1000:rwx,g:2000:r", root / "file"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", root / "dir"], check=True)
    os.chmod(root / "big", 0o640)
    os.chmod(root / "dir" / "deep", 0o1751)
    os.utime(root / "file", ns=(1_111_111_111_123_456_789, 1_222_222_222_987_654_321))
    os.utime(root / "dangling", ns=(5, 1_000_000_007), follow_symlinks=False)


@pytest.mark.parametrize("detector", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
def test_everything_of_a_user_is_replicated_live(place, detector):
    p = place.primary
    what_a_user_has(p)
    many_small_files(p / "many", 200, 8)
    prefix = as_nobody(place.base)
    with place.run("--change-detector", detector, prefix=prefix) as run:
        run.wait_idle()
        asked = os.umask(0o022)
        try:
            shutil.copytree(p / "many", p / "copy")
            os.rename(p / "many" / "d0", p / "moved")
            shutil.rmtree(p / "many" / "d1")
            (p / "file").write_text("changed")
            (p / "copy" / "d2" / "new").write_text("new")
            (p / "empty").mkdir()
            subprocess.run(["chown", "-R", "-h", f"{NOBODY}:{NOBODY}", p], check=True)
        finally:
            os.umask(asked)
        run.wait_same(60)
        os.rename(p / "moved", p / "moved again")
        (p / "moved again" / "inside").write_text("x")
        os.chown(p / "moved again" / "inside", NOBODY, NOBODY)
        run.wait_same(60)
        if detector == "auto":
            assert run.status["crawl"] == "changelog", run.status
        assert run.stop() == 0
    said(run)
    assert_same(p, place.secondary)


def test_what_becomes_readable_follows_by_itself(place):
    """The mark does not pass what could not be read, and the rest goes on meanwhile."""
    p = place.primary
    many_small_files(p, 40, 4)
    prefix = as_nobody(place.base)
    secret, closed = p / "d0" / "f0", p / "d1"
    secret.chmod(0)
    closed.chmod(0)
    with place.run(prefix=prefix) as run:
        run.wait_for(lambda: run.status.get("failures", 0) >= 2, "two failures")
        held = run.progress()["stime_ns"]
        (p / "d2" / "other").write_text("goes on")
        run.wait_for((place.secondary / "d2" / "other").exists, "the rest")
        assert run.progress()["stime_ns"] <= held
        closed.chmod(0o700)
        secret.chmod(0o600)
        run.wait_for(lambda: run.status.get("failures", 9) == 0, "no failures", 60)
        run.wait_idle()
        assert run.progress()["stime_ns"] > held
        os.chown(p / "d2" / "other", NOBODY, NOBODY)
        run.wait_same()
        assert run.stop() == 0
    said(run)
    assert_same(p, place.secondary)


def test_what_belongs_to_others_is_a_copy_that_belongs_to_us(place):
    """Owners cannot be given by a user: the content is there, and it is said once, not for each file."""
    p = place.primary
    many_small_files(p, 40, 4)
    prefix = as_nobody(place.base)
    for number in range(20):
        os.chown(p / f"d{number % 4}" / f"f{number}", 1234, 5678)
    run = place.once("--change-detector", "scan", prefix=prefix)
    said(run)
    assert run.process.returncode == 0, run.report()
    for number in range(40):
        there = place.secondary / f"d{number % 4}" / f"f{number}"
        assert there.read_bytes() == (p / f"d{number % 4}" / f"f{number}").read_bytes()
        assert there.stat().st_uid == NOBODY
    again = place.once("--change-detector", "scan", prefix=prefix)
    assert again.process.returncode == 0
    assert again.status["files_done"] == 0, again.status


def test_what_cannot_be_kept_is_said_and_a_device_is_a_failure(place):
    p = place.primary
    many_small_files(p, 10, 2)
    prefix = as_nobody(place.base)
    os.mknod(p / "device", 0o644 | stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(p / "d0" / "f0", "trusted.test", b"x")
    os.chown(p / "d1" / "f1", 1234, 5678)
    run = place.once("--change-detector", "scan", prefix=prefix)
    said(run)
    assert run.process.returncode == 3, run.report()
    assert logged(run, "owners and groups", "device nodes", "trusted.* attributes", "cannot be")
    (failure,) = [
        json.loads(line)
        for line in subprocess.run(
            [sys.executable, "-m", "seamark", "failures", session_of(place), "--json", "--state-dir", place.state],
            capture_output=True, check=False, cwd="/", env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        ).stdout.splitlines()
    ]  # fmt: skip
    assert (failure["path"], failure["code"]) == ("device", "permission")
    assert sorted(os.listdir(place.secondary)) == [".seamark", "d0", "d1"]
    for number in range(10):
        name = f"d{number % 2}/f{number}"
        assert (place.secondary / name).read_bytes() == (p / name).read_bytes()


def session_of(place):
    (path,) = place.state.glob("sessions/*")
    return path.name


def test_trusted_attributes_that_nobody_here_can_read_are_said(caplog, monkeypatch):
    session = Session(name="s", id="i", instance="i", primary="/p", secondary="root@host:/s")
    _say_what_cannot_be_kept(session, {"fs": {"chown": True, "mknod": True, "trusted": True, "xattr": True}})
    assert caplog.text == ""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    _say_what_cannot_be_kept(session, {"fs": {"chown": True, "mknod": True, "trusted": True, "xattr": True}})
    assert "primary /p: trusted.* attributes cannot be read" in caplog.text


def test_fanotify_where_it_is_not_allowed_is_one_line(place):
    """Marks on each directory need no privilege on kernels of 5.17 and later; else it says so."""
    many_small_files(place.primary, 4, 1)
    run = place.once("--change-detector", "fanotify", prefix=as_nobody(place.base))
    if run.process.returncode:
        ended(run, 1, "cannot be recorded")
    else:
        assert_same(place.primary, place.secondary)


def test_a_secondary_that_may_not_be_written_is_permission_denied(place):
    many_small_files(place.primary, 4, 1)
    prefix = as_nobody(place.base)
    place.secondary.mkdir(mode=0o755)
    ended(place.once(prefix=prefix), 1, "ermission denied")
    ended(place.once(prefix=prefix, secondary="/usr/no-such-place"), 1, "ermission denied")
    assert os.listdir(place.secondary) == []


def test_a_state_directory_that_may_not_be_written_is_named(place):
    many_small_files(place.primary, 4, 1)
    prefix = as_nobody(place.base)
    os.chown(place.base, 0, 0)
    place.base.chmod(0o755)
    ended(place.once(prefix=prefix), 1, str(place.state), "choose another --state-dir")
