"""The scenarios that GlusterFS tests its own geo-replication with, written anew: once for each way to find what changed."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from tests.judge import assert_same
from tests.system.gluster.test_wounds import Writer, said
from tests.system.trees import many_small_files

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
_PATIENCE_S = 180
_NAMES = ["ὑγιεία", "日本語", "ñandú", "файл", "e\u0301", "\U0001f41f", "a b\tc"]


def base(root):
    """What is there before, for all scenarios."""
    for name in ("chmod", "chown", "chgrp", "truncate", "renamed", "linked", "removed", "attributes"):
        many_small_files(root / name, 12, 2, seed=len(name))
    for name in _NAMES:
        (root / "names" / name).mkdir(parents=True)
        (root / "names" / name / name).write_text(name)
    logs = root / "logs"
    logs.mkdir()
    for number in range(4):
        (logs / f"log.{number}").write_text(f"{number}\n" * 500)
    (root / "snapshots" / "hourly.0").mkdir(parents=True)
    for number in range(10):
        (root / "snapshots" / "hourly.0" / f"f{number}").write_text(f"{number}" * 700)
    chain = root / "chain"
    chain.mkdir()
    for number in range(5):
        (chain / f"file{number}").write_text(f"{number}" * 100)
        os.link(chain / f"file{number}", chain / f"link{number}")
    (root / "kinds").mkdir()
    os.symlink("../chmod", root / "kinds" / "was a symlink")
    (root / "kinds" / "was a file").write_text("file")
    (root / "kinds" / "was a directory").mkdir()


def files(folder):
    return sorted(path for path in folder.rglob("f*") if path.is_file())


def attributes(root):
    for number, path in enumerate(files(root / "chmod")):
        path.chmod((0o600, 0o755, 0o4711, 0o1666)[number % 4])
    for number, path in enumerate(files(root / "chown")):
        os.chown(path, 1000 + number, -1)
    for number, path in enumerate(files(root / "chgrp")):
        os.chown(path, -1, 2000 + number)
    for number, path in enumerate(files(root / "attributes")):
        os.setxattr(path, "user.colour", b"%d" % number)
        os.utime(path, ns=(10**18, 10**18 + number))
    (root / "chmod" / "d0").chmod(0o2770)


def entries(root):
    for number, path in enumerate(files(root / "truncate")):
        os.truncate(path, (0, 100, 100_000)[number % 3])
    for number, path in enumerate(files(root / "renamed")):
        path.rename(path.with_name(f"now{number}"))
    (root / "renamed" / "d1").rename(root / "elsewhere")
    for number, path in enumerate(files(root / "linked")):
        os.link(path, root / f"hard{number}")
        os.symlink(path.relative_to(root), root / f"soft{number}")
    shutil.rmtree(root / "removed")
    # onto what is there: a file, a directory that is empty, another name of the same file
    (root / "chmod" / "d0" / "f0").rename(root / "chmod" / "d0" / "f2")
    (root / "full").mkdir()
    (root / "full" / "file").write_text("x")
    (root / "full").rename(root / "kinds" / "was a directory")
    os.rename(root / "chain" / "file4", root / "chain" / "link4")
    # another kind of thing under the same name
    (root / "kinds" / "was a symlink").rename(root / "kinds" / "symlink")
    (root / "kinds" / "was a symlink").mkdir()
    (root / "kinds" / "was a symlink" / "file").write_text("in a directory")
    (root / "kinds" / "was a file").unlink()
    os.symlink("nowhere", root / "kinds" / "was a file")


def logrotate(root):
    logs = root / "logs"
    for turn in range(6):
        for number in range(3, -1, -1):
            (logs / f"log.{number}").rename(logs / f"log.{number + 1}")
        (logs / "log.0").write_text(f"turn {turn}\n" * 300)
        with open(logs / "log.0", "a") as file:
            file.write("more")


def rsnapshot(root):
    """Directories of hard links to what has not changed since, moved on by one each time."""
    snapshots = root / "snapshots"
    for turn in range(4):
        if (snapshots / "hourly.3").exists():
            shutil.rmtree(snapshots / "hourly.3")
        for number in range(2, -1, -1):
            if (snapshots / f"hourly.{number}").exists():
                (snapshots / f"hourly.{number}").rename(snapshots / f"hourly.{number + 1}")
        shutil.copytree(snapshots / "hourly.1", snapshots / "hourly.0", copy_function=os.link)
        changed = snapshots / "hourly.0" / f"f{turn}"
        changed.unlink()
        changed.write_text(f"changed in turn {turn}" * 50)


def chains(root):
    """Names of one inode that follow each other, and names that change hands."""
    chain = root / "chain"
    for number in range(4):
        for step in range(5):
            (chain / f"link{number}").rename(chain / f"link{number}.{step}")
            (chain / f"link{number}.{step}").rename(chain / f"link{number}")
        os.link(chain / f"file{number}", chain / f"third{number}")
        (chain / f"file{number}").unlink()
        (chain / f"third{number}").rename(chain / f"file{number}")
    for first, second in (("file0", "file1"), ("file1", "file2"), ("file2", "file0")):
        (chain / first).rename(chain / "aside")
        (chain / second).rename(chain / first)
        (chain / "aside").rename(chain / second)


def names(root):
    for number, name in enumerate(_NAMES):
        (root / "names" / name / name).rename(root / "names" / f"{name}{number}")
        (root / "names" / name).rename(root / "names" / f"{number}{name}")
        (root / f"{name}").write_text(name * 100)


SCENARIOS = (attributes, entries, logrotate, rsnapshot, chains, names)


@pytest.mark.parametrize(
    "crawl",
    [
        "history",
        pytest.param("hybrid", marks=pytest.mark.slow),
        pytest.param("changelog", marks=pytest.mark.slow),
    ],
)
def test_scenarios(place, crawl):
    root = place.volume(2)
    base(root)
    with place.run() as run:
        run.wait_idle(_PATIENCE_S)
        assert_same(root, place.secondary)
        if crawl == "changelog":
            for scenario in SCENARIOS:
                scenario(root)
                time.sleep(1)  # seen in one go, or in several
            _kill_a_brick(place, run, root)
            _settled(run, place, root)
            return
        assert run.stop() == 0
    for scenario in SCENARIOS:
        scenario(root)
    if crawl == "hybrid":
        for path in place.state.glob("sessions/*/changelog/bricks.json"):
            path.unlink()  # how far the bricks were followed
    with place.run() as run:
        _settled(run, place, root)
        assert said(run, "hybrid crawl begins") == (crawl == "hybrid"), run.report()


def _settled(run, place, root):
    run.wait_same(_PATIENCE_S)
    run.wait_for(lambda: run.status.get("phase") == "idle", "rest", _PATIENCE_S)
    run.wait_for(lambda: run.status.get("failures") == 0, "failures to be mended", _PATIENCE_S)
    assert_same(root, place.secondary)
    assert run.stop() == 0


def _kill_a_brick(place, run, root):
    with Writer(root / "logs") as writer:
        place.node.kill_brick(place.name, 1)
        time.sleep(1)
        place.node.start_bricks(place.name, 1)
        goal = writer.count + 50
        run.wait_for(lambda: writer.count > goal, "writes to go on")
