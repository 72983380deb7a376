"""The volume through another host's mount: nothing is read that is not provably what was observed."""

from __future__ import annotations

import os
import shutil

import pytest

from replication.volume.directory import VanishedError, VolumeError
from replication.volume.handle import stat_at
from replication.volume.identity import identify
from replication.volume.mounted import MountedVolume


@pytest.fixture
def primary(tmp_path):
    root = tmp_path / "primary"
    root.mkdir()
    (root / "file").write_bytes(b"content")
    return root


def observed(root, name):
    fd = os.open(root, os.O_PATH)
    try:
        gfid, stat = identify(fd, name)
        return (stat.ino, stat.ctime_ns, stat.size), gfid
    finally:
        os.close(fd)


def opened(root, expect, gfid, name=b"file"):
    volume = MountedVolume(os.fsencode(root), os.stat(root).st_ino)
    try:
        fd, stat = volume.open_file(volume.root_fd, name, expect, gfid)
        os.close(fd)
        return stat
    finally:
        volume.close()


def test_what_was_observed_is_opened(primary):
    expect, gfid = observed(primary, b"file")
    assert opened(primary, expect, gfid).ino == expect[0]
    assert opened(primary, expect, bytes(16)).ino == expect[0]  # handles may differ there


def test_what_changed_since_is_not(primary):
    """Not even under a handle that is the same: on a clone of the file system that proves nothing."""
    expect, gfid = observed(primary, b"file")
    os.utime(primary / "file")
    with pytest.raises(VanishedError):
        opened(primary, expect, gfid)


def test_what_was_too_young_to_be_a_version_is_not(primary):
    (ino, _, size), gfid = observed(primary, b"file")
    with pytest.raises(VanishedError):
        opened(primary, (ino, 0, size), gfid)


def test_a_copy_is_not(primary, tmp_path):
    expect, gfid = observed(primary, b"file")
    shutil.copytree(primary, tmp_path / "copy")
    with pytest.raises(VanishedError):
        opened(tmp_path / "copy", expect, gfid)


def test_no_symlink_and_no_fifo(primary):
    expect, gfid = observed(primary, b"file")
    os.symlink("file", primary / "link")
    os.mkfifo(primary / "fifo")
    with pytest.raises(VanishedError):
        opened(primary, expect, gfid, b"link")
    fifo, gfid = observed(primary, b"fifo")
    with pytest.raises(VanishedError):
        opened(primary, fifo, gfid, b"fifo")


def test_a_directory_that_is_not_the_primary_is_refused(primary, tmp_path):
    with pytest.raises(VolumeError, match="mounted"):
        MountedVolume(os.fsencode(tmp_path), os.stat(primary).st_ino)


def test_an_open_file_is_asked_anew_of_its_server(primary):
    """statx of a descriptor and of a name agree on a local file system, whatever flags go along."""
    fd = os.open(primary / "file", os.O_RDONLY)
    at = os.open(primary, os.O_PATH)
    assert stat_at(fd, b"") == stat_at(at, b"file")
    os.close(fd)
    os.close(at)
