"""A directory volume: an object is what its gfid says, and nothing outside of the root is ever opened."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.observation import Change
from replication.secondary.digests import digest_of
from replication.secondary.index import Index, Row, root_row
from replication.secondary.layout import ROOT_ID
from replication.secondary.metadata import is_replicated
from replication.volume.directory import DirectoryVolume, VanishedError, VolumeError
from replication.volume.handle import open_beneath, stat_at
from replication.volume.identity import ROOT_GFID, identify, identify_fd
from replication.volume.xattrs import read_xattrs

# Any byte but "/" and NUL, up to 255 of them; bytes that are no UTF-8, and characters on both sides of them in order.
NAMES = st.one_of(
    st.binary(min_size=1, max_size=255),
    st.text("aé\uffee\udcff😀\n", min_size=1, max_size=40).map(os.fsencode),
).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..") and len(name) < 256
)


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "root" / "dir").mkdir(parents=True)
    (tmp_path / "root" / "file").write_bytes(b"content")
    (tmp_path / "outside").write_text("secret")
    made = DirectoryVolume(os.fsencode(tmp_path / "root"))
    yield made
    made.close()


def gfid_at(volume, name):
    return identify(volume.root_fd, name)[0]


def test_a_gfid_survives_renames_and_links_and_nothing_else(volume):
    root = os.fsdecode(volume.root)
    before = gfid_at(volume, b"file")
    os.rename(f"{root}/file", f"{root}/dir/renamed")
    os.link(f"{root}/dir/renamed", f"{root}/linked")
    assert gfid_at(volume, b"linked") == before
    os.unlink(f"{root}/linked")
    os.unlink(f"{root}/dir/renamed")
    for _ in range(20):
        with open(f"{root}/file", "wb"):
            pass
        assert gfid_at(volume, b"file") != before
        os.unlink(f"{root}/file")


def test_stat_says_what_the_system_says(volume):
    ours, theirs = stat_at(volume.root_fd, b"file"), os.stat(b"file", dir_fd=volume.root_fd)
    assert (ours.mode, ours.ino, ours.size, ours.dev) == (
        theirs.st_mode,
        theirs.st_ino,
        theirs.st_size,
        theirs.st_dev,
    )
    assert (ours.mtime_ns, ours.ctime_ns) == (theirs.st_mtime_ns, theirs.st_ctime_ns)
    assert (ours.blocks, ours.nlink, ours.uid) == (theirs.st_blocks, theirs.st_nlink, theirs.st_uid)


@pytest.mark.parametrize("path", [b"../outside", b"dir/../../outside", b"/etc/passwd", b"escape/passwd"])
def test_nothing_outside_is_opened(volume, path):
    os.symlink("/etc", os.path.join(volume.root, b"escape"))
    with pytest.raises(OSError):
        open_beneath(volume.root_fd, path, os.O_RDONLY)


def test_another_directory_under_the_same_path_is_not_taken_for_it(volume):
    gfid = gfid_at(volume, b"dir")
    os.rmdir(os.path.join(volume.root, b"dir"))
    os.mkdir(os.path.join(volume.root, b"dir"))
    with pytest.raises(VanishedError):
        volume.open_dir(b"dir", gfid)


def test_another_file_under_the_same_name_is_not_taken_for_it(volume):
    gfid, stat = identify(volume.root_fd, b"file")
    aside = os.path.join(volume.root, b"aside")
    with open(aside, "wb") as file:
        file.write(b"other!!")
    os.utime(aside, ns=(stat.atime_ns, stat.mtime_ns))
    os.rename(aside, os.path.join(volume.root, b"file"))
    with pytest.raises(VanishedError):
        volume.open_file(volume.root_fd, b"file", (stat.ino, stat.ctime_ns, stat.size), gfid)


def test_a_symlink_in_place_of_a_file_is_not_followed(volume):
    gfid, stat = identify(volume.root_fd, b"file")
    path = os.path.join(volume.root, b"file")
    os.unlink(path)
    os.symlink("../outside", path)
    with pytest.raises(VanishedError):
        volume.open_file(volume.root_fd, b"file", (stat.ino, stat.ctime_ns, stat.size), gfid)


def test_our_own_directory_at_the_root_is_left_out_and_only_there(volume):
    os.mkdir(os.path.join(volume.root, b".seamark"))
    os.mkdir(os.path.join(volume.root, b"dir/.seamark"))
    assert b".seamark" not in volume.names(volume.root_fd, is_root=True)
    fd = volume.open_dir(b"dir", gfid_at(volume, b"dir"))
    assert volume.names(fd, is_root=False) == [b".seamark"]
    os.close(fd)


def test_a_digest_changes_with_any_name_or_version(volume):
    def digest():
        return volume.summarise(volume.root_fd, volume.names(volume.root_fd, is_root=True)).digest

    path = os.path.join(volume.root, b"file")
    seen = {digest()}
    for change in (
        lambda: os.chmod(path, 0o600),
        lambda: os.truncate(path, 3),
        lambda: os.rename(path, path + b"2"),
        lambda: os.mkdir(os.path.join(volume.root, b"new")),
        lambda: os.setxattr(path + b"2", "user.test", b"x"),
    ):
        change()
        assert digest() not in seen
        seen.add(digest())


@given(st.sets(NAMES, max_size=12))
@settings(max_examples=60)
def test_a_digest_is_the_same_on_both_sides_whatever_the_names(names):
    with tempfile.TemporaryDirectory() as base:
        root = os.fsencode(base) + b"/root"
        os.mkdir(root)
        for name in names:
            os.close(os.open(root + b"/" + name, os.O_CREAT | os.O_WRONLY))
        index = Index(os.fsencode(base) + b"/index")
        index.create(root_row(os.stat(root)))
        for number, name in enumerate(names, 2):
            found = os.stat(root + b"/" + name)
            row = Row(number, number.to_bytes(16, "big"), found.st_mode, 0, 0, 0, 0, 0, 0, 1)
            row.pino, row.pctime, row.new = found.st_ino, found.st_ctime_ns, True
            index.save([row], [(ROOT_ID, name, number)], [])
        volume = DirectoryVolume(root)
        listed = volume.names(volume.root_fd, is_root=False)
        summary = volume.summarise(volume.root_fd, listed)
        there = digest_of(index, ROOT_ID)
        volume.close()
        index.close()
    assert listed == sorted(names)
    assert summary.names == len(names)
    assert summary.digest == there


def test_what_vanished_is_absent_and_a_symlink_has_its_text(volume):
    os.symlink(b"\xff to nowhere", os.path.join(volume.root, b"link"))
    assert volume.observe(volume.root_fd, b"gone", Change.NONE).inode is None
    assert volume.observe(volume.root_fd, b"link", Change.NONE).target == b"\xff to nowhere"


def test_xattrs_of_ours_and_of_the_system_stay_here(volume):
    path = os.path.join(volume.root, b"file")
    os.setxattr(path, "user.kept", b"\0")
    os.setxattr(path, "user.seamark.x.stime", b"ours")
    assert read_xattrs(path) == {"user.kept": "AA=="}
    assert not is_replicated("security.selinux", trusted=True)
    assert is_replicated("security.capability", trusted=True)
    assert not is_replicated("trusted.seamark.x.stime", trusted=True)


def test_a_primary_that_is_not_there_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(VolumeError, match=str(path)):
            DirectoryVolume(os.fsencode(path))


def test_the_root_is_the_root_whatever_its_handle(volume):
    fd = volume.open_dir(b"", ROOT_GFID)
    assert identify_fd(fd)[0] == identify_fd(volume.root_fd)[0]
    os.close(fd)
    with pytest.raises(VanishedError):
        volume.open_dir(b"", gfid_at(volume, b"dir"))
