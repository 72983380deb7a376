"""Directories of ours are removed, and nothing that is mounted in them."""

from __future__ import annotations

import os
import subprocess

import pytest

from replication.private import is_mount, remove_tree


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("1")
    ours = tmp_path / "ours with a blank"
    (ours / "below" / "deep").mkdir(parents=True)
    (ours / "below" / "file").write_text("1")
    (ours / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(ours / "fifo")
    return ours


def test_all_of_it_goes_and_nothing_that_links_lead_to(tree):
    remove_tree(tree)
    assert os.listdir(tree.parent) == ["outside"]
    assert (tree.parent / "outside" / "kept").exists()
    with pytest.raises(FileNotFoundError):
        remove_tree(tree)


@pytest.mark.root
@pytest.mark.parametrize("what", ["a file system", "a directory", "a file system, a moment ago"])
def test_what_is_mounted_in_it_stays(tree, what, monkeypatch):
    where = tree / "below" / "deep"
    known = what != "a file system, a moment ago"
    kind = ["--bind", tree.parent / "outside"] if what == "a directory" else ["-t", "tmpfs", "none"]
    subprocess.run(["mount", *kind, where], check=True)
    try:
        (where / "kept").write_text("1")
        assert is_mount(where) and not is_mount(tree)
        if not known:  # between the look and the removal
            monkeypatch.setattr("replication.private._mounted", list)
        with pytest.raises(OSError, match="mounted"):
            remove_tree(tree)
        assert (where / "kept").exists()
        assert not known or (tree / "fifo").exists()
    finally:
        subprocess.run(["umount", where], check=True)
    monkeypatch.undo()
    remove_tree(tree)
    assert (tree.parent / "outside" / "kept").exists()
