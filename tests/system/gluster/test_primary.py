"""A Gluster volume as the primary: the whole stack on real bricks, judged by rsync and mtree on the users' mount."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.judge import assert_same
from tests.system.trees import ODD_NAMES, every_kind_of_thing, many_small_files

KINDS = {
    "single brick": (1,),
    "distribute 2": (2,),
    "replica 2 + arbiter": (3, "replica", "2", "arbiter", "1"),
    "disperse 2 + 1": (3, "disperse", "3", "redundancy", "1"),
}


def churn(root):
    """Some of everything that may happen to a tree."""
    shutil.rmtree(root / "many" / "d3")
    os.rename(root / "many" / "d4", root / "moved")
    (root / "moved" / "f4").write_text("changed")
    os.rename(root / "moved" / "f9", root / "moved" / "f14")  # over another one
    os.link(root / "many" / "d0" / "f0", root / "another name")
    (root / "new" / "deep").mkdir(parents=True)
    (root / "new" / "deep" / "file").write_bytes(b"x" * 3_000_000)
    os.rename(root / "new", root / "newer")
    os.chmod(root / "many" / "d1", 0o2750)
    os.setxattr(root / "many" / "d1" / "f1", "user.colour", b"blue")
    os.symlink("d0", root / "many" / "link")
    os.unlink(root / "many" / "link")
    os.rename(root / "many" / "d2", root / "many" / "link")
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(root), b"newer", name), "wb") as file:
            file.write(name)


@pytest.mark.root
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "distribute 2" else pytest.mark.slow) for kind in KINDS]
)
def test_what_is_there_and_what_changes_arrives(place, kind):
    root = place.volume(*KINDS[kind])
    every_kind_of_thing(root)
    many_small_files(root / "many", 50, 5)
    with place.run() as run:
        run.wait_idle()
        assert_same(root, place.secondary)
        churn(root)
        run.wait_same()
        run.wait_for(lambda: run.status.get("phase") == "idle", "rest")
        assert run.status["failures"] == 0, run.report()
        assert next(place.state.glob("sessions/*/detector")).read_text() == "changelogs"
        assert run.stop() == 0
    assert str(place.state) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
@pytest.mark.slow
def test_attributes_arrive_where_the_volume_does_not_tell_where_a_file_is(place):
    """Nothing else says that they changed: Gluster sets no ctime for an extended attribute."""
    root = place.volume(2, **{"storage.gfid2path": "off"})
    many_small_files(root / "many", 20, 2)
    os.link(root / "many" / "d0" / "f0", root / "linked")
    with place.run() as run:
        run.wait_idle()
        for name in ("linked", "many/d1/f1"):
            os.setxattr(root / name, "user.colour", b"blue")
        run.wait_same()
        assert run.stop() == 0
