"""A promotion to a snapshot: the root is what it was then, what came later is kept aside, and a kill at any point changes nothing of that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from tests.filesystems import attached, mounted
from tests.judge import assert_same, rsync_differences
from tests.secondary.primary import Far, Primary
from tests.secondary.roots import KINDS, root_of
from tests.secondary.test_promotion import agent, look
from tests.secondary.test_snapshots import take
from tests.system.trees import every_kind_of_thing

pytestmark = pytest.mark.root


def promote(root, to=None, term=1, fault=""):
    with agent(root, fault) as client:
        return client.promotion(do="promote", term=term, by="a test", to=to)


class Past:
    """A root with a snapshot; what it held then is in ``then``, and what it holds now in ``now``."""

    def __init__(self, root):
        self.root, self.primary = root, root.parent / "primary"
        self.then, self.now = root.parent / "then", root.parent / "now"
        self.primary.mkdir()
        every_kind_of_thing(self.primary)
        (self.primary / "sparse").unlink()  # too large for one request
        side = Primary(self.primary)
        with Far(root) as client:
            side.crawl(client)
            client.call("mark", text='{"stime_ns": 9}')
            self.name = take(client)["name"]
            self.copy_to(self.then)
            for name in ("file", "big"):
                (self.primary / name).write_bytes(b"encrypted")
            shutil.rmtree(self.primary / "dir" / "deep")
            (self.primary / "new").mkdir()
            (self.primary / "new" / "file").write_bytes(b"new")
            side.crawl(client, stamp=2)
            (self.primary / "new").rename(self.primary / "on its way")
            client.observe([side.look(b"", [b"new"])], position=1, limbo_until=5)
            assert client.stat()["limbo"] == 1
        (root / "foreign").write_text("somebody else's")
        self.copy_to(self.now)

    def copy_to(self, where):
        # All names at once: they are links of each other.
        os.mkdir(where)
        names = [os.fsencode(self.root / name) for name in os.listdir(self.root) if name != ".seamark"]
        subprocess.run(["cp", "-a", "--", *names, where], check=True)
        os.chmod(where, os.stat(self.root).st_mode & 0o7777)
        os.utime(where, ns=(os.stat(self.root).st_atime_ns, os.stat(self.root).st_mtime_ns))

    def displaced(self):
        """What was in the root; one that was killed too early has left an empty one as well."""
        found = [path for path in (self.root / ".seamark" / "displaced").iterdir() if any(path.iterdir())]
        assert len(found) == 1, {path.name: os.listdir(path) for path in found}
        return found[0]

    def judge(self):
        assert_same(self.then, self.root)
        kept = self.displaced()
        limbo = [p for p in kept.iterdir() if p.name.startswith(".seamark-limbo-")]
        assert [p.name for p in limbo[0].iterdir()] == ["file"]
        shutil.rmtree(limbo[0])
        assert sorted(os.listdir(kept)) == sorted(os.listdir(self.now))
        for name in ("dir", "big", "file"):
            if (kept / name).is_dir():
                assert_same(self.now / name, kept / name)
            else:
                assert (kept / name).read_bytes() == (self.now / name).read_bytes()
        assert (kept / "foreign").read_text() == "somebody else's"
        assert not (self.root / ".seamark" / "going-back").exists()
        views = self.root / ".seamark" / "views"
        assert not views.exists() or list(views.iterdir()) == []


@pytest.fixture(params=KINDS)
def past(request, tmp_path):
    with root_of(request.param, tmp_path / "fs") as root:
        yield Past(root)


def test_the_root_is_what_it_was_and_what_came_later_is_kept(past):
    facts = look(past.root)
    assert [record["name"] for record in facts["snapshots"]] == [past.name]
    with pytest.raises(SecondaryError) as caught:
        promote(past.root, to="20200101T000000Z")
    assert caught.value.code == "not-found"
    assert look(past.root)["promoted"] is None
    facts = promote(past.root, to=past.name)
    assert facts["promoted"]["to"] == past.name
    assert facts["promoted"]["done"]
    assert (facts["index"], facts["limbo"]) == ("ok", 0)
    assert '"stime_ns": 1700000000000000000' in facts["mark"]  # the snapshot's
    past.judge()
    with pytest.raises(SecondaryError) as caught:
        Far(past.root, epoch=9)
    assert caught.value.code == "promoted"


@pytest.mark.parametrize(
    "fault", ["copied-back:1", "out:1", "out:4", "in:1", "in:7", "index:1", "gone-back:1"]
)
def test_killed_at_any_point_it_goes_on(tmp_path, fault):
    with root_of("xfs", tmp_path / "fs") as root:
        past = Past(root)
        with pytest.raises(LinkLost):
            promote(root, to=past.name, fault=fault)
        facts = look(root)
        assert facts["promoted"]["to"] == past.name
        assert not facts["promoted"]["done"]
        facts = promote(root)  # it is known what was begun
        assert facts["promoted"]["done"]
        past.judge()


def test_its_index_is_the_roots(tmp_path):
    """With it a session could go on: index and tree agree, and nothing is wanted."""
    with root_of("xfs", tmp_path / "fs") as root:
        past = Past(root)
        promote(root, to=past.name)
        owner = root / ".seamark" / "owner"
        text = owner.read_text()
        assert '"promoted"' in text
        said = json.loads(text)
        del said["promoted"]
        owner.write_text(json.dumps(said))
        with Far(root, epoch=said["epoch"] + 1, holder="x", takes=said["epoch"]) as client:
            assert client.check() == []
            stat = client.stat()
            assert (stat["dirty"], stat["limbo"]) == (0, 0)


def test_what_somebody_writes_meanwhile_is_kept_aside(tmp_path):
    """Between two steps, at names that the snapshot has: it comes in all the same."""
    with root_of("xfs", tmp_path / "fs") as root:
        past = Past(root)
        with pytest.raises(LinkLost):
            promote(root, to=past.name, fault="in:1")
        (root / "file").write_text("of an application that did not wait")
        (root / "dir").mkdir()
        (root / "dir" / "x").write_text("the same")
        facts = promote(root)
        assert facts["promoted"]["done"]
        kept = [path for path in (root / ".seamark" / "displaced").iterdir() if any(path.iterdir())]
        assert len(kept) == 3
        others = [path for path in kept if len(list(path.iterdir())) == 1]
        texts = [p.read_text() for path in others for p in path.rglob("*") if p.is_file()]
        assert sorted(texts) == ["of an application that did not wait", "the same"]
        for path in others:
            shutil.rmtree(path)
        past.judge()


def test_what_cannot_be_moved_is_said_before_anything_is(tmp_path):
    with root_of("xfs", tmp_path / "fs") as root:
        past = Past(root)
        (root / "mounted").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", root / "mounted"], check=True)
        subprocess.run(["chattr", "+i", root / "foreign"], check=True)
        try:
            with pytest.raises(SecondaryError, match="foreign"):
                promote(root, to=past.name)
            assert not rsync_differences(past.now, root, "--exclude=/mounted")
            subprocess.run(["chattr", "-i", root / "foreign"], check=True)
            with pytest.raises(SecondaryError, match="mounted"):
                promote(root, to=past.name)
            assert not rsync_differences(past.now, root, "--exclude=/mounted")
        finally:
            subprocess.run(["chattr", "-i", root / "foreign"], check=False)
            subprocess.run(["umount", root / "mounted"], check=True)
        (root / "mounted").rmdir()
        assert promote(root)["promoted"]["done"]
        past.judge()


def test_a_power_cut_in_the_middle(tmp_path):
    """The disk as it is at a kill, without what the kernel has not written yet."""
    with root_of("btrfs directory", tmp_path / "fs") as root:
        past = Past(root)
        with pytest.raises(LinkLost):
            promote(root, to=past.name, fault="in:1")
        image = tmp_path / "fs" / "btrfs.img"
        shutil.copyfile(image, tmp_path / "after.img")
        subprocess.run(["cp", "-a", past.then, tmp_path / "then"], check=True)
        subprocess.run(["cp", "-a", past.now, tmp_path / "now"], check=True)
    where = tmp_path / "again"
    with attached(tmp_path / "after.img") as device, mounted("btrfs", device, where):
        again = where / "root"
        assert promote(again)["promoted"]["done"]
        past.root, past.then, past.now = again, tmp_path / "then", tmp_path / "now"
        past.judge()


def test_another_snapshot_while_nothing_was_moved(tmp_path):
    """One that cannot be copied is no dead end."""
    with root_of("xfs", tmp_path / "fs") as root:
        past = Past(root)
        with Far(root, epoch=2) as client:
            other = take(client)["name"]
        broken = root / ".seamark" / "snapshots" / other / "root" / ".seamark" / "owner"
        broken.unlink()
        broken.mkdir()
        with pytest.raises(SecondaryError, match="owner|directory"):
            promote(root, to=other)
        assert look(root)["promoted"]["to"] == other
        assert_same(past.now, root)
        with pytest.raises(LinkLost):
            promote(root, to=past.name, fault="out:2")
        with pytest.raises(SecondaryError) as caught:
            promote(root, to=other)
        assert caught.value.code == "busy"
        assert promote(root)["promoted"]["to"] == past.name
        past.judge()


def test_another_snapshot_when_all_of_the_first_is_there(tmp_path):
    """Killed just before it was said to be done: the other one is what was asked for last."""
    with root_of("xfs", tmp_path / "fs") as root:
        past = Past(root)
        with Far(root, epoch=2) as client:
            other = take(client)["name"]
        promote(root, to=other)
        owner = root / ".seamark" / "owner"
        said = json.loads(owner.read_text())
        said["promoted"]["done"] = False
        owner.write_text(json.dumps(said))
        facts = promote(root, to=past.name)
        assert (facts["promoted"]["to"], facts["promoted"]["done"]) == (past.name, True)
        assert_same(past.then, root)


def test_what_was_promoted_goes_back_as_well(tmp_path):
    """In a later term; what was written since is kept. Its snapshots are listed, and removed, without a session."""
    with root_of("xfs", tmp_path / "fs") as root:
        past = Past(root)
        facts = promote(root)
        assert facts["promoted"]["done"]
        shutil.rmtree(past.now)
        (root / "written since").write_text("since")
        with agent(root) as client:
            (found,) = client.past(do="list")["items"]
            assert (found["name"], found["until_ns"] > found["taken_ns"]) == (past.name, True)
            with pytest.raises(SecondaryError) as caught:
                client.past(do="list", session="another")
            assert caught.value.code == "owned"
            with pytest.raises(SecondaryError) as caught:
                client.past(do="remove", name=past.name)
            assert caught.value.code == "kept"
        facts = promote(root, to=past.name, term=2)
        assert (facts["promoted"]["term"], facts["promoted"]["to"]) == (2, past.name)
        assert_same(past.then, root)
        kept = [
            path for path in (root / ".seamark" / "displaced").iterdir() if (path / "written since").exists()
        ]
        assert (kept[0] / "written since").read_text() == "since"
        with agent(root) as client:
            client.past(do="remove", name=past.name, force=True)
            assert client.past(do="list")["items"] == []


LIMITED = """
import os, sys
from replication.secondary.__main__ import serve
sys.exit(serve(os.fsencode(sys.argv[1]), limited=True))
"""


def test_the_old_primary_s_key_moves_nothing_of_what_was_promoted(tmp_path):
    """It is a primary now, and in use: only who has access of their own may take it back to a snapshot."""
    with root_of("xfs", tmp_path / "fs") as root:
        past = Past(root)
        promote(root)
        (root / "written since").write_text("since")
        with agent(root, start=["-c", LIMITED, str(root)]) as client:
            for words in ({"term": 2, "to": past.name}, {"term": 2}, {"term": 1, "to": past.name}):
                with pytest.raises(SecondaryError) as caught:
                    client.promotion(do="promote", by="the old primary", **words)
                assert caught.value.code == "permission", words
            assert client.promotion(do="promote", term=1)["promoted"]["done"]
            assert [found["name"] for found in client.past(do="list")["items"]] == [past.name]
            record = root / ".seamark" / "snapshots" / past.name / "record"
            said = json.loads(record.read_text())
            record.write_text(json.dumps({**said, "taken_ns": 1}))  # no rule keeps it any more
            with pytest.raises(SecondaryError) as caught:
                client.past(do="remove", name=past.name)
            assert caught.value.code == "permission"
        assert (root / "written since").read_text() == "since"
        assert look(root)["term"] == 1
