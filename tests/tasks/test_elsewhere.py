"""One data unit on another host, and what becomes of it at home: nothing is lost between the two, and nothing is made up."""

from __future__ import annotations

import json
import os
import shutil
import time

import msgspec
import pytest

from replication.failures import Failure
from replication.joined import export, joined_file
from replication.observation import Change, Listing
from replication.session import Desired, Session, SessionDir
from replication.transfer.item import FileItem, decode_items, encode_items
from replication.transfer.stream import StreamSender
from replication.volume.directory import DirectoryVolume
from replication.volume.identity import ROOT_GFID
from scheduler.crawl import Crawler
from scheduler.epoch import take_over
from scheduler.retry import retry_failures
from tasks import context as contexts
from tasks import data, fleet
from tasks.app import app, use
from tasks.canvas import queue_of
from tasks.servers import of_url
from tasks.terms import decode_terms, encode_terms
from tests.judge import rsync_differences
from tests.secondary.test_content_only import made, settle

# The setting is the one of the Celery that we require.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
NAME, UNIT, NODE = "home", "D:stream:C:0:0", "host.home.12ab"
ID, INSTANCE = "ab" * 16, "12ab34cd56ef"


class Pair:
    """The primary's node and a worker's host, of which this process is one at a time."""

    def __init__(self, base, redis_url, monkeypatch):
        self.base, self.monkeypatch = base, monkeypatch
        self.primary, self.secondary, self.mounted = base / "primary", base / "secondary", base / "mounted"
        for directory in (self.primary, self.secondary):
            directory.mkdir()
        use(of_url(redis_url))
        monkeypatch.setenv("SEAMARK_FLEET", f"{NAME}.{INSTANCE}")
        session = Session(
            name=NAME, id=ID, instance=INSTANCE, primary=str(self.primary), secondary=str(self.secondary)
        )
        SessionDir(base / "node", NAME).save_run(session)
        joined = joined_file(base / "worker", NAME)
        joined.parent.mkdir(parents=True)
        joined.write_text(export(msgspec.structs.replace(session, primary=str(self.mounted)), base / "key"))
        self.ctx = None
        self.at_home()
        self.epoch = take_over(self.ctx)
        self.batch = 0

    def _be(self, where):
        if self.ctx is not None:
            self.leave()
        self.monkeypatch.setenv("SEAMARK_STATE_DIR", str(self.base / where))
        self.ctx = contexts.context(NAME)
        return self.ctx

    def leave(self):
        self.ctx.drop_connection()
        contexts._contexts.clear()

    def at_home(self):
        self.monkeypatch.setenv("SEAMARK_NODE", NODE)
        return self._be("node")

    def elsewhere(self):
        """Told by the node, as it does each second."""
        self.at_home().tell(self.epoch)
        self.monkeypatch.delenv("SEAMARK_NODE")
        return self._be("worker")

    def wanted(self):
        """What the secondary wants of the primary's files."""
        client = self.at_home().secondary(self.epoch).client
        client.begin_crawl("c")
        return self.tell_names()

    def wanted_below(self, name):
        """The same of what is in a directory."""
        assert self.wanted() == []
        return self.tell_names(os.fsencode(name))

    def tell_names(self, *below):
        """Have the secondary know of what is in the root, and in this directory; what it wants of that."""
        client = self.ctx.secondary(self.epoch).client
        volume = DirectoryVolume(os.fsencode(self.primary))
        wanted = []
        parent, fd, prefix = ROOT_GFID, volume.root_fd, b""
        for directory in (b"", *below):
            if directory:
                parent = volume.observe(volume.root_fd, directory, Change.NONE).inode.gfid
                fd, prefix = volume.open_dir(directory, parent), directory + b"/"
            entries = [volume.observe(fd, n, Change.DATA) for n in volume.names(fd, is_root=not directory)]
            listing = Listing(parent, entries, complete=True)
            seen = client.observe([listing], crawl="c", limbo_until=1)
            of = {entry.inode.gfid.hex(): entry for entry in entries}
            wanted += [
                FileItem(bytes.fromhex(g), prefix + of[g].name, how, *(getattr(of[g].inode, n) for n in ("ino", "ctime_ns", "size", "nlink")))
                for g, how in seen.need
            ]  # fmt: skip
        volume.close()
        return wanted

    def open(self, items):
        self.batch += 1
        manifest = {"kind": "hybrid", "crawl": "c", "start_ns": 1, "final": False, "since_ns": 1}
        self.ctx.ledger.open(self.epoch, self.batch, manifest, {UNIT: encode_items(items)})

    def units(self):
        found = self.ctx.ledger.redis.hgetall(f"seamark:{{{INSTANCE}}}:units:{self.batch}")
        return {name.decode(): decode_items(payload[8:]) for name, payload in found.items()}

    def do(self, unit=UNIT):
        kwargs = {"session": NAME, "epoch": self.epoch, "batch": self.batch, "unit": unit}
        return data.sync_by_stream.apply(kwargs=kwargs).get()

    def waiting(self, queue):
        return [json.loads(m)["headers"] for m in self.ctx.ledger.redis.lrange(queue, 0, -1)]

    def finish_at_home(self):
        """All that is left, as the node does it."""
        self.at_home()
        while units := self.units():
            for unit in units:
                self.do(unit)
                assert unit not in self.units()

    def same(self):
        # (the root's own attributes are no file's)
        return [
            line for line in rsync_differences(self.primary, self.secondary) if not line.endswith(" ./")
        ] == []


@pytest.fixture
def pair(tmp_path, redis_server, monkeypatch):
    from tasks import canvas

    app.finalize()
    made = Pair(tmp_path, redis_server.url, monkeypatch)
    yield made
    made.leave()
    canvas._homes.clear()
    fleet._troubles.clear()
    app.close()


def some_files(pair, mount=True):
    for number in range(3):
        made(pair.primary / f"f{number}", os.urandom(1000 + number), 0o640 + number)
    for path in pair.primary.iterdir():
        settle(path)
    if mount:
        pair.mounted.symlink_to(pair.primary)


def test_content_goes_from_elsewhere_and_metadata_from_home(pair):
    some_files(pair)
    pair.open(pair.wanted())
    pair.elsewhere()
    assert "3 of 3 files" in pair.do()
    assert {(item.path, item.how) for item in pair.units()["N:stream:C:0:0"]} == {
        (b"f0", "metadata"), (b"f1", "metadata"), (b"f2", "metadata"),
    }  # fmt: skip
    assert [path.read_bytes() for path in sorted(pair.secondary.glob("f*"))] == [
        path.read_bytes() for path in sorted(pair.primary.iterdir())
    ]
    assert not pair.same()
    (message,) = pair.waiting(f"data.{NODE}")
    assert message["task"] == "tasks.data.sync_by_stream"
    pair.finish_at_home()
    assert pair.same()


def test_what_is_no_proof_goes_back_as_it_was_asked_for(pair):
    some_files(pair, mount=False)
    pair.open(pair.wanted())
    asked = pair.units()[UNIT]
    shutil.copytree(pair.primary, pair.mounted)
    pair.elsewhere()
    pair.monkeypatch.setattr(
        "tasks.elsewhere.MountedVolume.__init__", lambda self, root, _: DirectoryVolume.__init__(self, root)
    )
    assert "0 of 3 files" in pair.do()
    assert [item.how for item in pair.units()["N:stream:C:0:0"]] == ["new"] * 3
    assert {item.gfid for item in pair.units()["N:stream:C:0:0"]} == {item.gfid for item in asked}
    assert list(pair.secondary.glob("f*")) == []
    pair.finish_at_home()
    assert pair.same()


def test_one_that_changed_goes_back_and_the_others_do_not(pair):
    some_files(pair)
    pair.open(pair.wanted())
    (pair.primary / "f1").write_bytes(b"another")
    pair.elsewhere()
    pair.do()
    assert {item.path: item.how for item in pair.units()["N:stream:C:0:0"]} == {
        b"f0": "metadata", b"f1": "new", b"f2": "metadata",
    }  # fmt: skip
    pair.finish_at_home()
    assert pair.same()


@pytest.mark.parametrize("instead", ["nothing", "a directory that is not the primary"])
def test_without_its_volume_all_is_left_and_the_worker_rests(pair, instead):
    some_files(pair, mount=False)
    if instead != "nothing":
        pair.mounted.mkdir()
    pair.open(pair.wanted())
    ctx = pair.elsewhere()
    assert "left to the primary's node" in pair.do()
    assert [item.how for item in pair.units()["N:stream:C:0:0"]] == ["new"] * 3
    assert ctx.ledger.redis.hget("seamark:fleet:rests:", NAME)
    assert ctx.ledger.current_trouble() is None  # it is none of the session's
    pair.finish_at_home()
    assert pair.same()


@pytest.mark.parametrize("where", ["at home", "elsewhere"])
def test_a_worker_that_was_killed_before_it_settled_leaves_no_file_without_metadata(pair, where):
    some_files(pair)
    items = pair.wanted()
    pair.open(items)
    ctx = pair.elsewhere()
    ctx.begin(pair.epoch)
    StreamSender(ctx.volume, ctx.secondary(pair.epoch).client, compress=False).send(items)
    assert pair.units().keys() == {UNIT}
    if where == "elsewhere":
        pair.do()
        assert [item.how for item in pair.units()["N:stream:C:0:0"]] == ["metadata"] * 3
    pair.finish_at_home()
    assert pair.same()


def test_a_paused_session_sends_nothing_from_elsewhere_either(pair):
    some_files(pair)
    pair.open(pair.wanted())
    pair.ctx.place.change_state(desired=Desired.PAUSED)
    pair.elsewhere()
    assert pair.do() == "given back: paused"
    assert pair.units().keys() == {UNIT}
    assert list(pair.secondary.glob("f*")) == []


def test_settings_that_change_on_the_primarys_node_hold_elsewhere(pair):
    some_files(pair)
    ctx = pair.elsewhere()
    ctx.begin(pair.epoch)
    assert ctx.session.compression == "auto"
    told = decode_terms(ctx.ledger.told())
    changed = msgspec.structs.replace(told, sending=msgspec.structs.replace(told.sending, compression="on"))
    ctx.ledger.tell(pair.epoch, encode_terms(changed))
    ctx._looked = 0.0
    ctx.refresh()
    assert ctx.session.compression == "on"
    ctx.ledger.redis.set(f"seamark:{{{INSTANCE}}}:terms", b'{"primary": "/etc"}')
    ctx._looked = 0.0
    ctx.refresh()
    assert (ctx.session.compression, ctx.session.primary) == ("on", str(pair.mounted))


def test_another_secondary_than_the_nodes_gets_nothing(pair):
    some_files(pair)
    pair.open(pair.wanted())
    ctx = pair.elsewhere()
    told = decode_terms(ctx.ledger.told())
    ctx.ledger.tell(pair.epoch, encode_terms(msgspec.structs.replace(told, index_id="another")))
    assert "is to look first" in pair.do()
    assert pair.units().keys() == {UNIT}
    assert [m["task"] for m in pair.waiting(f"control.{NODE}")] == ["scheduler.jobs.ask_secondary"]


def test_an_older_epoch_ends(pair):
    some_files(pair)
    pair.open(pair.wanted())
    pair.at_home()
    old, pair.epoch = pair.epoch, take_over(pair.ctx)
    pair.elsewhere()
    pair.epoch = old
    assert "stale" in pair.do() or pair.do() == "done already"
    assert list(pair.secondary.glob("f*")) == []


def test_where_units_wait(monkeypatch):
    monkeypatch.setenv("SEAMARK_FLEET", "a.1")
    monkeypatch.setenv("SEAMARK_NODE", "host.a.1")
    assert queue_of("a", "D:stream:E:5:0:3") == "stream.a.1"
    assert queue_of("a", "D:rsync:E:5:7:0") == "bulk.a.1"  # a later part of a segment: there is much of it
    assert queue_of("a", "D:stream:C:0.1:0") == "stream.a.1"
    assert queue_of("a", "R:tar:1f.0") == "tar.a.1"
    assert queue_of("a", "N:rsync:E:5:7:0") == "data.host.a.1"
    assert queue_of("a", "E:5:1") == queue_of("a", "C:0.1") == "control.host.a.1"


def test_attributes_whose_unit_raises_are_tried_again(pair):
    """Its content is there: a failure of that would be none any more when it is tried again."""
    (pair.primary / "old").mkdir()
    made(pair.primary / "old" / "f", b"content", 0o640)
    pair.mounted.symlink_to(pair.primary)
    pair.open(pair.wanted_below("old"))
    pair.elsewhere()
    assert "1 of 1 files" in pair.do()
    pair.at_home()

    def broken(*_):
        raise RuntimeError("broken")

    with pair.monkeypatch.context() as patched:
        patched.setattr("tasks.data.dress", broken)
        pair.do("N:stream:C:0:0")
    bad, _ = pair.ctx.ledger.reports(pair.batch)
    pair.ctx.progress.record([Failure(**row) for row in bad], [])
    pair.batch += 1
    retry_failures(pair.ctx, at_once=True)
    assert pair.ctx.progress.failure_count() == 1
    assert [item.how for items in pair.units().values() for item in items] == ["metadata"]
    pair.finish_at_home()
    _, good = pair.ctx.ledger.reports(pair.batch)
    assert {failure.key for failure in pair.ctx.progress.failures()} <= {key for key, _ in good}


@pytest.mark.parametrize("when", ["before it is looked at", "meanwhile", "never"])
def test_attributes_are_found_after_a_directory_above_was_renamed(pair, when):
    """Nothing about the files themselves changes by that, and no record of theirs says where they are."""
    (pair.primary / "old").mkdir()
    for number in range(3):
        made(pair.primary / "old" / f"f{number}", os.urandom(1000), 0o640 + number)
    pair.mounted.symlink_to(pair.primary)
    pair.open(pair.wanted_below("old"))
    pair.elsewhere()
    assert "3 of 3 files" in pair.do()
    os.rename(pair.primary / "old", pair.primary / "new")
    pair.at_home()
    if when == "before it is looked at":
        pair.tell_names(b"new")
    elif when == "meanwhile":
        waited = []

        def sleep(seconds):
            waited.append(seconds)
            if len(waited) == 2:
                pair.tell_names(b"new")

        pair.monkeypatch.setattr("tasks.metadata.time.sleep", sleep)
    unit = "N:stream:C:0:0"
    if when == "never":
        assert "3 failed" in pair.do(unit)
        bad, _ = pair.ctx.ledger.reports(pair.batch)
        assert [(row["step"], row["code"]) for row in bad] == [("metadata", "moved")] * 3
        pair.ctx.progress.record([Failure(**row) for row in bad], [])
        pair.tell_names(b"new")
        pair.batch += 1
        retry_failures(pair.ctx, at_once=True)
        assert [item.how for items in pair.units().values() for item in items] == ["metadata"] * 3
        pair.finish_at_home()
        _, good = pair.ctx.ledger.reports(pair.batch)
        assert {row["gfid"] for row in bad} == {
            key.split(":")[1] for key, _ in good if key.startswith("meta")
        }
    else:
        pair.finish_at_home()
        assert pair.ctx.ledger.reports(pair.batch)[0] == []
    assert pair.same()


def test_attributes_of_what_is_about_to_be_removed_are_not_looked_for_in_limbo(pair, monkeypatch):
    """It may come back under another name until it is removed, so they are still missing; at a path that people know."""
    (pair.primary / "old").mkdir()
    made(pair.primary / "old" / "f", b"1", 0o640)
    pair.mounted.symlink_to(pair.primary)
    pair.open(pair.wanted_below("old"))
    pair.elsewhere()
    pair.do()
    shutil.rmtree(pair.primary / "old")
    client = pair.at_home().secondary(pair.epoch).client
    pair.tell_names()
    monkeypatch.setattr("tasks.metadata.time.sleep", lambda _: None)
    assert "1 failed" in pair.do("N:stream:C:0:0")
    (row,), _ = pair.ctx.ledger.reports(pair.batch)
    assert (row["code"], row["path"]) == ("moved", "old/f")
    pair.ctx.progress.record([Failure(**row)], [])
    pair.batch += 1
    retry_failures(pair.ctx, at_once=True)
    ((item,),) = pair.units().values()
    assert item.path == b"old/f"
    client.purge(2**62)
    assert retry_failures(pair.ctx, at_once=True) == "0 files, 0 names"
    assert pair.ctx.progress.failures() == []


def test_content_that_is_not_where_it_was_holds_the_mark(pair, monkeypatch):
    """It was renamed, and the secondary does not know yet: what is wanted still is no file that is gone."""
    some_files(pair)
    pair.open(pair.wanted())
    os.rename(pair.primary / "f1", pair.primary / "f9")
    (pair.primary / "f2").unlink()
    monkeypatch.setattr("tasks.data.time.sleep", lambda _: None)
    assert "2 failed" in pair.do()
    bad, _ = pair.ctx.ledger.reports(pair.batch)
    assert {(row["path"], row["step"], row["code"]) for row in bad} == {
        ("f1", "data", "moved"), ("f2", "data", "moved"),
    }  # fmt: skip


def test_metadata_is_sent_though_the_ledger_that_knew_of_it_is_lost(pair):
    """The content came from elsewhere, in a crawl that has looked at everything; nothing else says what is left."""
    some_files(pair)
    pair.open(pair.wanted())
    pair.elsewhere()
    pair.do()
    ctx = pair.at_home()
    assert ctx.progress.begin_crawl(pair.epoch, "c", 0, time.time_ns(), 2**63 - 1, {})
    ctx.progress.crawl_swept("c")
    ctx.ledger.redis.flushdb()
    pair.epoch = take_over(ctx)
    assert Crawler(ctx).tick() == "batch 1: 1 units"
    pair.batch = 1
    ((name, items),) = pair.units().items()
    assert name.startswith("N:") and {item.path for item in items} == {b"f0", b"f1", b"f2"}
    pair.do(name)
    assert pair.same()
