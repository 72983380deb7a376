"""Some seeds of the thrasher, and that its witness sees what is wrong. The long run: python -m tests.system.thrash."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

from tests.conftest import missing, need
from tests.filesystems import available, filesystem
from tests.system.thrash.plan import plan, wanting
from tests.system.thrash.run import play
from tests.system.thrash.witness import Comparison

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _tools():
    need("rsync", "mtree", "btrfs", "git", "sshd")
    for kind in ("btrfs", "xfs", "ext4"):
        if reason := available(kind):
            missing(reason)


def ends_well(seed, seconds, tmp_path):
    made = plan(seed, seconds)
    if reason := wanting(made):
        missing(reason)
    print(f"seed {seed} for {seconds} s: {made}")
    result = play(seed, seconds, tmp_path)
    print(result.line())
    assert not result.wrong, (result.wrong, result.kept)


@pytest.mark.parametrize("seed", [8, 22, 34])
def test_a_seed(seed, tmp_path):
    ends_well(seed, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1012))
def test_a_longer_seed(seed, tmp_path):
    ends_well(seed, 10, tmp_path)


def test_a_seed_always_means_the_same():
    assert plan(7, 10) == plan(7, 10)
    assert len({str(plan(seed, 10)) for seed in range(100)}) > 30


# ---- the witness


@pytest.fixture
def volumes(tmp_path):
    """A primary with a snapshot, a copy that is right, and the time before the snapshot."""
    with filesystem("btrfs", tmp_path) as primary:
        for directory in ("a", "b", "b/c"):
            (primary / directory).mkdir()
            for number in range(3):
                (primary / directory / f"f{number}").write_text(f"{directory} {number}")
        (primary / "a" / "link").symlink_to("f1")
        subprocess.run(["cp", "-a", primary, tmp_path / "copy"], check=True)
        (primary / ".seamark").mkdir()
        time.sleep(0.2)
        before_ns = time.time_ns()
        subprocess.run(
            ["btrfs", "subvolume", "snapshot", "-r", primary, primary / ".seamark" / "s"],
            check=True,
            capture_output=True,
        )
        yield primary, tmp_path / "copy", primary / ".seamark" / "s", before_ns


def compared(volumes):
    primary, copy, snapshot, before_ns = volumes
    return Comparison(snapshot, primary, copy, before_ns).run()


def test_the_witness_finds_a_right_copy_right(volumes):
    found = compared(volumes)
    assert (found.compared, found.names, found.mismatches) == (13, 4, [])


def _rewrite(path):
    before = path.stat()
    path.write_text("XXX")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda copy: (copy / "b" / "c" / "f1").unlink(),
        lambda copy: (copy / "b" / "never").touch(),
        lambda copy: _rewrite(copy / "a" / "f0"),
        lambda copy: (copy / "a").chmod(0o700),
        lambda copy: os.utime(copy / "a" / "f1", ns=(1, 1)),
        lambda copy: os.setxattr(copy / "b" / "f2", "user.x", b"y"),
        lambda copy: os.rename(copy / "b", copy / "moved"),
    ],
)
def test_the_witness_sees_what_is_wrong(volumes, spoil):
    spoil(volumes[1])
    assert compared(volumes).mismatches


def test_the_witness_blames_nobody_for_what_changes(volumes):
    primary, copy, *_ = volumes
    (primary / "a" / "f0").write_text("later")
    os.rename(primary / "b", primary / "away")
    os.rename(primary / "away", primary / "b")
    shutil.rmtree(copy / "b")
    (copy / "a" / "f0").unlink()
    (copy / "a" / "f1").unlink()
    found = compared(volumes)
    assert len(found.mismatches) == 2  # the names of `a`, and f1: both were left alone on the primary
    assert all("/a" in line for line in found.mismatches)
