"""A file is changed under one of its names, and that name is gone before anybody looks: its other names have the change."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.filesystems import filesystem
from tests.judge import assert_same
from tests.system.test_unprivileged import as_nobody


def changed_and_gone(directory):
    """By a name that the secondary knows, by one that it never sees, and by one that another file takes."""
    for number in range(3):
        (directory / f"f{number}").write_text("old")
    os.link(directory / "f0", directory / "d" / "known")
    os.link(directory / "f2", directory / "d" / "taken")
    yield
    (directory / "d" / "known").write_text("changed by a name that was known")
    (directory / "d" / "known").unlink()
    (directory / "d" / "taken").write_text("changed by a name that was taken")
    (directory / "d" / "another").write_text("another")
    os.rename(directory / "d" / "another", directory / "d" / "taken")
    yield
    os.link(directory / "f1", directory / "d" / "new")
    (directory / "d" / "new").write_text("changed by a name that nobody saw")
    (directory / "d" / "new").unlink()
    yield


def detector(place):
    (path,) = place.state.glob("sessions/*/detector")
    return path.read_text()


def until_the_same(run, place):
    run.wait_same()
    run.wait_idle()
    assert_same(place.primary, place.secondary)


def test_the_whole_file_system_is_marked(place):
    (place.primary / "d").mkdir()
    with place.run() as run:
        for _ in changed_and_gone(place.primary):
            until_the_same(run, place)
        assert detector(place) == "filesystem"
        assert run.stop() == 0


def test_directories_are_marked_with_privileges(place, tmp_path):
    (tmp_path / "image").mkdir()
    with filesystem("btrfs", tmp_path / "image") as top:
        primary = place.primary = top / "subvolume"
        subprocess.run(["btrfs", "subvolume", "create", primary], check=True, capture_output=True)
        (primary / "d").mkdir()
        with place.run() as run:
            for _ in changed_and_gone(primary):
                until_the_same(run, place)
            assert detector(place) == "directories"
            assert run.stop() == 0


def test_directories_are_marked_without_privileges(place):
    """What nobody saw the name of is found by the next comparison of the tree: the kernel does not say which file that was."""
    (place.primary / "d").mkdir()
    steps = changed_and_gone(place.primary)
    prefix = as_nobody(place.base)
    with place.run(prefix=prefix) as run:
        run.wait_idle()
        for said in ("old", "changed by a name that was {}"):
            next(steps)
            for name, how in (("f0", "known"), ("f2", "taken")):
                there, text = place.secondary / name, said.format(how)
                run.wait_for(
                    lambda there=there, text=text: there.exists() and there.read_text() == text, name
                )
        if detector(place) != "directories":
            pytest.skip("marks of users need a kernel of 5.17")
        assert run.stop() == 0
