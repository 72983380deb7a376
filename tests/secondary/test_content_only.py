"""A connection of a worker that sees the primary through another host's mount: it brings content, and nothing else."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from replication.observation import Change, Listing
from replication.remote.target import Target
from replication.transfer.item import FileItem
from replication.transfer.stream import StreamSender
from replication.transfer.tar import sync_by_tar
from replication.volume.directory import DirectoryVolume
from replication.volume.identity import ROOT_GFID
from tests.conftest import need
from tests.secondary.primary import Far, Primary, differences


@pytest.fixture
def trees(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "lie").mkdir()
    return tmp_path / "a", tmp_path / "b", tmp_path / "lie"


class Both:
    """The primary's node and a worker elsewhere, each with an agent on one secondary."""

    def __init__(self, a, b):
        self.a, self.b = a, b
        self.primary = Primary(a)
        self.volume = DirectoryVolume(os.fsencode(a))
        self.node, self.worker = Far(b), Far(b, content_only=True)
        self.position = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.worker.close()
        self.node.close()
        self.volume.close()

    def wanted(self, change=Change.DATA):
        self.position += 1
        names = self.volume.names(self.volume.root_fd, is_root=True)
        entries = [self.volume.observe(self.volume.root_fd, name, change) for name in names]
        seen = self.node.client.observe(
            [Listing(ROOT_GFID, entries, complete=True)], position=self.position, limbo_until=1
        )
        of = {entry.inode.gfid.hex(): entry for entry in entries}
        return [
            FileItem(bytes.fromhex(g), of[g].name, how, *(getattr(of[g].inode, n) for n in ("ino", "ctime_ns", "size", "nlink")))
            for g, how in seen.need
        ]  # fmt: skip

    def from_elsewhere(self, items):
        sender = StreamSender(self.volume, self.worker.client, compress=False)
        results = sender.send(items)
        assert {result.status for result in results} == {"ok"}
        return results

    def metadata(self):
        self.primary.send_metadata(
            self.node.client, [g.hex() for g in self.primary.paths()], self.primary.paths()
        )


def settle(path):
    """A state that is old enough to be a version."""
    while time.time_ns() - os.lstat(path).st_ctime_ns < 50_000_000:
        time.sleep(0.01)


def made(path, content, mode=0o644):
    path.write_bytes(content)
    path.chmod(mode)
    os.setxattr(path, "user.of", b"the primary")


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_a_new_file_is_private_until_its_metadata_comes(trees, size):
    a, b, _ = trees
    made(a / "f", os.urandom(size), 0o664)
    settle(a / "f")
    with Both(a, b) as both:
        both.from_elsewhere(both.wanted())
        here = b / "f"
        assert here.read_bytes() == (a / "f").read_bytes()
        assert stat.S_IMODE(here.stat().st_mode) == 0o600
        assert os.listxattr(here) == []
        assert both.node.client.wanted([both.primary.gfid(b"f")]) == [-2]
        both.metadata()
        assert both.node.client.wanted([both.primary.gfid(b"f")]) == [0]
        assert differences(a, b) == ""


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_what_is_here_keeps_what_it_has_until_then(trees, size):
    a, b, _ = trees
    made(a / "f", os.urandom(size), 0o664)
    settle(a / "f")
    with Both(a, b) as both:
        both.from_elsewhere(both.wanted())
        both.metadata()
        (a / "f").write_bytes(os.urandom(size))
        os.setxattr(a / "f", "user.later", b"too")
        settle(a / "f")
        both.from_elsewhere(both.wanted())
        assert (b / "f").read_bytes() == (a / "f").read_bytes()
        assert stat.S_IMODE((b / "f").stat().st_mode) == 0o664
        assert os.listxattr(b / "f") == ["user.of"]
        both.metadata()
        assert differences(a, b) == ""


def test_equal_content_is_found_and_its_metadata_is_wanted(trees):
    a, b, _ = trees
    made(a / "f", b"content")
    settle(a / "f")
    with Both(a, b) as both:
        both.from_elsewhere(both.wanted())
        both.metadata()
        os.utime(a / "f")
        (a / "f").chmod(0o600)
        settle(a / "f")
        items = [item._replace(how="compare") for item in both.wanted()]
        both.from_elsewhere(items)
        assert os.listxattr(b / "f") == ["user.of"]
        assert both.node.client.wanted([items[0].gfid]) == [-2]
        both.metadata()
        assert both.node.client.wanted([items[0].gfid]) == [0]
        assert differences(a, b) == ""


def test_by_a_program_too(trees):
    need("tar")
    a, b, _ = trees
    made(a / "f", b"content", 0o640)
    settle(a / "f")
    with Both(a, b) as both:
        results = sync_by_tar(
            both.wanted(), both.volume, both.worker.client, Target(os.fsencode(b), None, None)
        )
        assert [result.status for result in results] == ["ok"]
        assert (stat.S_IMODE((b / "f").stat().st_mode), os.listxattr(b / "f")) == (0o600, [])
        both.metadata()
        assert differences(a, b) == ""


def test_who_waited_for_a_worker_elsewhere_brings_the_metadata(trees):
    """Or it would be taken for sent, and its mark pass, while a file is still private."""
    a, b, _ = trees
    made(a / "f", os.urandom(3 << 20), 0o664)
    settle(a / "f")
    with Both(a, b) as both:
        items = both.wanted()
        both.worker.client.call("file_begin", gfid=items[0].gfid.hex(), size=3 << 20, version="v")
        busy = []

        def progress(_files, _size):
            if not busy:
                busy.append(True)
                both.from_elsewhere(items)

        (result,) = StreamSender(both.volume, both.node.client, compress=False, progress=progress).send(items)
        assert result.status == "ok"
        assert both.node.client.wanted([items[0].gfid]) == [0]
        assert (b / "f").read_bytes() == (a / "f").read_bytes()
        assert (stat.S_IMODE((b / "f").stat().st_mode), os.listxattr(b / "f")) == (0o664, ["user.of"])


def test_a_late_twin_takes_nothing_back(trees):
    """Its content came, and its metadata; then a worker elsewhere compares the same file once more."""
    a, b, _ = trees
    made(a / "f", b"content")
    settle(a / "f")
    with Both(a, b) as both:
        items = both.wanted()
        both.from_elsewhere(items)
        both.metadata()
        both.from_elsewhere([item._replace(how="compare") for item in items])
        assert both.node.client.wanted([items[0].gfid]) == [0]
        assert differences(a, b) == ""


def test_of_no_certain_version_its_metadata_is_wanted_all_the_same(trees):
    a, b, _ = trees
    with Both(a, b) as both:
        made(a / "f", b"young")
        items = both.wanted()
        row = [*both.primary.item(items[0].gfid, b"f")[:7], 0, *both.primary.item(items[0].gfid, b"f")[8:]]
        assert both.worker.client.data([row], [b"young"]) == []
        assert both.node.client.wanted([items[0].gfid]) == [-2]
        assert Path(b / "f").read_bytes() == b"young"
