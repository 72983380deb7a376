"""What a secondary keeps for who has lost its session; an index that was copied; where its content comes from."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess

import pytest

from replication.remote.answers import SecondaryError
from replication.secondary.handles import identity_of
from replication.secondary.lineage import lineage_of
from replication.volume.identity import identify_fd
from tests.filesystems import available, filesystem
from tests.secondary.primary import Far, Primary, differences
from tests.secondary.test_agent import fill


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def identity(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return identity_of(fd).hex()
    finally:
        os.close(fd)


@contextlib.contextmanager
def far_of(root, **options):
    far = Far(root, **options)
    try:
        yield far
    finally:
        far.close()


def test_settings_are_kept_beside_the_mark_and_without_one(root):
    with far_of(root) as far:
        assert far.client.belongs()["settings"] is None
        far.client.call("mark", text=None, settings="jobs = 3\n")
        assert far.client.belongs()["settings"] == "jobs = 3\n"
        far.client.call("mark", text='{"stime_ns": 7}', settings="jobs = 4\n")
        found = far.client.belongs()
        assert (found["settings"], found["owner"]["session"]) == ("jobs = 4\n", "s")
    assert (root / ".seamark" / "session.toml").stat().st_mode & 0o777 == 0o600
    assert not list((root / ".seamark").glob("session.toml.*"))
    with far_of(root, epoch=2) as again:
        assert again.hello["mark"] == '{"stime_ns": 7}'


@pytest.mark.parametrize("how", ["copied", "copied into place", "moved", "renumbered"])
def test_an_index_that_was_copied_is_made_anew_and_keeps_the_mark(root, tmp_path, how):
    """Unless what it says is true there: the root was moved, or who copied it has put the numbers right."""
    (tmp_path / "a").mkdir()
    fill(tmp_path / "a")
    with far_of(root) as far:
        Primary(tmp_path / "a").crawl(far.client)
        far.client.call("mark", text='{"stime_ns": 7}')
        known = far.hello["index_id"]
    copy = root.with_name("copy")
    if how == "moved":  # the same inodes
        root.rename(copy)
    else:
        subprocess.run(["cp", "-a", root, copy], check=True)
    if how == "copied into place":
        subprocess.run(["rsync", "-aHAX", "--delete", "--ignore-times", f"{copy}/", f"{root}/"], check=True)
        copy = root
    if how == "renumbered":
        renumber(root, copy)
    believed = how in ("moved", "renumbered")
    with far_of(copy, epoch=2) as far:
        assert far.hello["mark"] == '{"stime_ns": 7}'
        assert (far.hello["index_id"] == known) is believed
        assert (far.hello["index"] == "rebuilding") is not believed
        again = far.hello["index_id"]
        Primary(tmp_path / "a").crawl(far.client, "d", rebuilt=True)
    assert not differences(tmp_path / "a", copy)
    assert list((copy / ".seamark" / "displaced").iterdir()) == []
    with far_of(copy, epoch=3) as far:
        assert (far.hello["index_id"], far.hello["index"]) == (again, "ok")


def renumber(root, copy):
    """Have the index of a copy say which inodes stand there."""
    new = {
        os.lstat(path).st_ino: os.lstat(copy / path.relative_to(root)).st_ino
        for path in [root, *root.rglob("*")]
    }
    with contextlib.closing(sqlite3.connect(copy / ".seamark" / "index.sqlite")) as db, db:
        for (ino,) in db.execute("SELECT DISTINCT ino FROM inode WHERE ino > 0").fetchall():
            db.execute("UPDATE inode SET ino = ? WHERE ino = ?", (-new[ino], ino))
        db.execute("UPDATE inode SET ino = -ino")


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "btrfs"])
@pytest.mark.root
def test_both_sides_know_a_root_by_the_same_identity(tmp_path, kind):
    if reason := available(kind):
        pytest.skip(reason)
    with filesystem(kind, tmp_path / "fs", mib=128) as mounted:
        fd = os.open(mounted, os.O_RDONLY)
        try:
            assert identity_of(fd) == identify_fd(fd)[0]
        finally:
            os.close(fd)


def test_a_ring_is_refused_by_the_root_itself(root, tmp_path):
    above = "ab" * 16
    with far_of(root, create=True, lineage=[above]):
        pass
    assert lineage_of(os.fsencode(root), identity(root)) == [above, identity(root)]
    other = tmp_path / "other"
    with far_of(other, create=True, lineage=lineage_of(os.fsencode(root), identity(root))):
        pass
    assert lineage_of(os.fsencode(other), "me") == [above, identity(root), "me"]
    for options in ({}, {"adopt": True}, {"dry": True}, {"read_only": True}):
        with pytest.raises(SecondaryError) as refused:
            Far(root, epoch=2, lineage=["me", identity(root)], **options)
        assert refused.value.code == "loop"


def test_a_promoted_secondary_has_no_lineage(root):
    with far_of(root, create=True, lineage=["above"]):
        pass
    path = root / ".seamark" / "owner"
    owner = json.loads(path.read_text())
    path.write_text(json.dumps({**owner, "promoted": {"ns": 1}}))
    assert lineage_of(os.fsencode(root), "me") == ["me"]
    path.write_text(
        json.dumps({name: owner[name] for name in ("session", "volume", "epoch")})
    )  # an older Seamark's
    assert lineage_of(os.fsencode(root), "me") == [owner["volume"], "me"]
    path.write_text("damaged")
    assert lineage_of(os.fsencode(root), "me") == ["me"]


def test_whoever_sends_only_content_changes_no_lineage(root):
    with far_of(root, create=True, lineage=["above"]):
        pass
    with far_of(root, epoch=1, content_only=True):
        pass
    assert json.loads((root / ".seamark" / "owner").read_text())["lineage"] == ["above"]
