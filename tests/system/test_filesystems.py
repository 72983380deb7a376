"""Every file system that people have, as the primary and as the secondary, judged by rsync and mtree."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time

import pytest

from tests.conftest import missing
from tests.filesystems import KINDS, available, filesystem
from tests.judge import assert_same
from tests.system.lines import said
from tests.system.trees import every_kind_of_thing, many_small_files

pytestmark = pytest.mark.root  # to mount them


@pytest.fixture
def mount(place):
    """mount(kind, name): the root of a new file system of this kind."""
    with contextlib.ExitStack() as stack:

        def make(kind, name):
            if reason := available(kind):
                missing(reason)
            root = stack.enter_context(filesystem(kind, place.base / name, mib=200))
            if (root / "lost+found").exists():
                os.rmdir(root / "lost+found")
            return root

        yield make
        for run in place.runs:  # nothing may hold a file system that is to be unmounted
            if run.process.poll() is None:
                run.kill()


def live_changes(p):
    """Renames, deletions, replacements and links, of what was there before."""
    many_small_files(p / "many" / "new", 100, 4, seed=2)
    os.rename(p / "many" / "d0", p / "renamed")
    shutil.rmtree(p / "many" / "d1")
    os.rename(p / "many" / "d2" / "f2", p / "many" / "d3" / "over")
    os.rename(p / "many" / "d3", p / "dir" / "moved")
    os.truncate(p / "big", 1_000_000)
    with open(p / "sparse", "r+b") as file:
        file.seek(10_000_000)
        file.write(b"in a hole")
    os.unlink(p / "file")  # two links are left
    with open(p / "dir" / "hard link", "ab") as file:
        file.write(b"through a link")
    os.link(p / "dir" / "hard link", p / "renamed" / "third")
    os.rmdir(p / "empty dir")
    (p / "empty dir").write_text("now a file")
    os.unlink(p / "symlink")
    os.symlink("elsewhere", p / "symlink")
    os.unlink(p / "fifo")
    (p / "fifo").mkdir()
    os.setxattr(p / "dir", "user.later", b"x")
    os.removexattr(p / "dir", "user.dir")
    subprocess.run(["setfacl", "-k", p / "dir"], check=True)


def replicate(place):
    """What was there, what changes live, and what changed while it was not running."""
    p = place.primary
    every_kind_of_thing(p)
    many_small_files(p / "many", 80, 4)
    with place.run() as run:
        run.wait_idle()
        assert_same(p, place.secondary)
        live_changes(p)
        run.wait_same(60)
        run.wait_idle(60)
        assert run.status["failures"] == 0, run.report()
        assert run.stop() == 0
    said(run)
    assert_same(p, place.secondary)
    os.rename(p / "renamed", p / "renamed again")
    (p / "renamed again" / "f4").unlink()
    again = place.once()
    assert again.process.returncode == 0, again.report()
    assert_same(p, place.secondary)


# What the tests' own directory is on, mostly ext4, all other tests are about.
ELSEWHERE = [
    pytest.param(kind, marks=pytest.mark.slow) if kind in ("ext4", "tmpfs") else kind for kind in KINDS
]


# (btrfs is a primary as a subvolume, too, below.)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind == "btrfs" else kind for kind in ELSEWHERE],
)
def test_as_primary(place, mount, kind):
    place.primary = mount(kind, "p")
    replicate(place)


@pytest.mark.parametrize("kind", [kind for kind in ELSEWHERE if kind != "xfs"])
def test_as_secondary(place, mount, kind):
    place.secondary = mount(kind, "s")
    replicate(place)


def test_xfs_as_secondary_keeps_acls(place, mount):
    """XFS shows each ACL a second time, as trusted.SGI_ACL_*: rsync takes that for an attribute too many."""
    p = place.primary
    place.secondary = mount("xfs", "s")
    every_kind_of_thing(p)
    with place.run() as run:
        run.wait_idle()
        (p / "dir").chmod(0o711)
        os.setxattr(p / "file", "user.later", b"x")
        run.wait_for(lambda: "user.later" in os.listxattr(place.secondary / "file"), "metadata")
        run.wait_for(lambda: (place.secondary / "dir").stat().st_mode & 0o777 == 0o711, "metadata")
        assert run.stop() == 0
    for name in ("file", "dir"):
        acls = [
            subprocess.check_output(["getfacl", "-n", "-c", "-p", root / name])
            for root in (p, place.secondary)
        ]
        assert acls[0] == acls[1]
    for path in (p / "file", p / "dir"):
        subprocess.run(["setfacl", "-b", path], check=True)
    run = place.once()
    assert run.process.returncode == 0, run.report()
    assert_same(p, place.secondary)


@pytest.mark.slow
def test_from_xfs_to_xfs(place, mount):
    place.primary, place.secondary = mount("xfs", "p"), mount("xfs", "s")
    replicate(place)


@pytest.mark.slow
@pytest.mark.parametrize("primary", ["xfs", "btrfs"])
@pytest.mark.parametrize("secondary", ["btrfs", "tmpfs"])
def test_from_one_to_another(place, mount, primary, secondary):
    place.primary = mount(primary, "p")
    time.sleep(
        1.1
    )  # the roots of two that are made in the same second are not told apart (docs/operations.md)
    place.secondary = mount(secondary, "s")
    replicate(place)


def test_a_btrfs_subvolume_as_primary(place, mount):
    """Marks on the file system are refused there: each directory is marked instead."""
    root = mount("btrfs", "p")
    place.primary = root / "subvolume"
    subprocess.run(["btrfs", "subvolume", "create", place.primary], check=True, capture_output=True)
    (root / "outside").write_text("not of this volume")
    replicate(place)


@pytest.mark.parametrize("detector", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
def test_a_btrfs_subvolume_inside_is_part_of_the_volume(place, mount, detector):
    """It looks like a directory to everybody, with a device number of its own."""
    p = place.primary = mount("btrfs", "p")
    many_small_files(p, 20, 2)
    subprocess.run(["btrfs", "subvolume", "create", p / "inner"], check=True, capture_output=True)
    many_small_files(p / "inner", 20, 2)
    with place.run("--change-detector", detector) as run:
        run.wait_idle()
        run.wait_same(30)
        (p / "inner" / "d0" / "later").write_text("later")
        os.rename(p / "inner" / "d1", p / "inner" / "renamed")
        (p / "inner" / "d0" / "f0").write_text("changed")
        (p / "d0" / "f2").unlink()
        run.wait_same(30)
        assert run.stop() == 0
    said(run)
    assert_same(p, place.secondary)


@pytest.mark.parametrize("detector", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
def test_a_bind_mount_inside_is_not_crossed(place, detector):
    """Of another part of the primary, of a directory outside and of a file: the same file system, other mounts."""
    if reason := available("tmpfs"):
        missing(reason)
    p, outside = place.primary, place.base / "outside"
    many_small_files(p, 40, 4)
    many_small_files(outside, 20, 2)
    points = {p / "part": p / "d0", p / "d1" / "beyond": outside, p / "d2" / "bound": outside / "d0" / "f0"}
    with contextlib.ExitStack() as stack:
        for point, what in points.items():
            point.mkdir() if what.is_dir() else point.touch()
            subprocess.run(["mount", "--bind", what, point], check=True)
            stack.callback(subprocess.run, ["umount", point], check=True)
        with place.run("--change-detector", detector) as run:
            run.wait_idle()
            for number in range(3):
                (p / "d0" / f"later{number}").write_text("later")
                (outside / f"later{number}").write_text("not of this volume")
                run.wait_for((place.secondary / "d0" / f"later{number}").exists, "what came later")
            os.rename(p / "d3", p / "renamed")
            run.wait_for((place.secondary / "renamed" / "f3").exists, "the renamed directory")
            run.wait_idle()
            assert run.status["failures"] == 0, run.report()
            assert run.stop() == 0
        said(run)
        copy = place.secondary
        assert os.listdir(copy / "part") == os.listdir(copy / "d1" / "beyond") == []
        assert not (copy / "d2" / "bound").exists()
        assert sorted(os.listdir(copy / "d0")) == sorted(os.listdir(p / "d0"))
        again = place.once("--change-detector", detector)
        assert again.process.returncode == 0, again.report()
        assert again.status["files_done"] == 0, again.report()
    run = place.once("--change-detector", detector)
    assert run.process.returncode == 0, run.report()
    assert_same(p, place.secondary)


def test_a_mount_point_inside_is_not_crossed_and_told_once(place, mount):
    p = place.primary
    many_small_files(p, 20, 2)
    inner = mount("tmpfs", "primary")
    many_small_files(inner, 20, 2)
    with place.run() as run:
        run.wait_idle()
        (p / "d0" / "later").write_text("later")
        run.wait_for((place.secondary / "d0" / "later").exists, "what came later")
        run.wait_idle()
        assert run.stop() == 0
    said(run)
    told = [m["message"] for m in run.of_type("log") if "another file system" in m["message"]]
    assert len(told) == 1, told
    assert (place.secondary / "tmpfs").is_dir()
    assert os.listdir(place.secondary / "tmpfs") == []
