"""When a hybrid crawl ends: durable on the secondary first, and only when no content is wanted there any more."""

from __future__ import annotations

import os
import time

import pytest

from replication.observation import Change, Listing
from replication.remote.answers import SecondaryError
from replication.session import Session, SessionDir
from replication.volume.directory import DirectoryVolume
from replication.volume.identity import ROOT_GFID
from scheduler.epoch import take_over
from tasks import context as contexts
from tasks import mark
from tasks.app import app, use
from tasks.canvas import control_queue
from tasks.servers import of_url
from tests.secondary.primary import Far

# The setting is the one of the Celery that we require.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
NAME, NEVER = "s1", 2**63 - 1


@pytest.fixture
def ctx(tmp_path, monkeypatch, redis_server):
    """A session whose crawl is open, and whose batch 1 has no unit left. The secondary agent is a real one."""
    (tmp_path / "primary").mkdir()
    (tmp_path / "secondary").mkdir()
    (tmp_path / "primary" / "file").write_bytes(b"content")
    monkeypatch.setenv("SEAMARK_STATE_DIR", str(tmp_path / "state"))
    use(of_url(redis_server.url))
    place = SessionDir(tmp_path / "state", NAME)
    primary, secondary = str(tmp_path / "primary"), str(tmp_path / "secondary")
    place.save_run(Session(name=NAME, id="i1", instance="i1", primary=primary, secondary=secondary))
    made = contexts.context(NAME)
    epoch = take_over(made)
    assert made.progress.begin_crawl(epoch, "c1", 0, time.time_ns(), NEVER, {})
    made.secondary(epoch).client.begin_crawl("c1")
    manifest = {
        "kind": "hybrid",
        "crawl": "c1",
        "start_ns": time.time_ns(),
        "final": False,
        "since_ns": NEVER,
    }
    made.ledger.open(epoch, 1, manifest, {})
    yield made
    made.drop_connection()
    made.progress.close()
    made.volume.close()
    app.close()
    contexts._contexts.clear()


def observe(ctx, epoch):
    """The file's name is told, its content is not there."""
    volume = DirectoryVolume(os.fsencode(ctx.session.primary))
    try:
        entry = volume.observe(volume.root_fd, b"file", Change.UNKNOWN)
    finally:
        volume.close()
    ctx.secondary(epoch).client.observe([Listing(ROOT_GFID, [entry])], crawl="c1", limbo_until=time.time_ns())


def test_a_crawl_that_left_nothing_to_send_ends_and_is_durable_first(ctx, monkeypatch):
    epoch = ctx.progress.brick().epoch
    client = ctx.secondary(epoch).client
    order, asked = [], client._submit
    monkeypatch.setattr(client, "_submit", lambda op, *rest: (order.append(op), asked(op, *rest))[1])
    mark.update_stime(NAME, epoch, 1)
    brick = ctx.progress.brick()
    assert brick.crawl is None
    assert brick.complete
    assert [op for op in order if op in ("sync", "dirty", "end_crawl")] == [
        "sync",
        "dirty",
        "dirty",
        "end_crawl",
    ]


def test_a_crawl_does_not_end_while_content_is_wanted(ctx):
    epoch = ctx.progress.brick().epoch
    observe(ctx, epoch)
    mark.update_stime(NAME, epoch, 1)
    brick = ctx.progress.brick()
    assert brick.crawl == "c1"
    assert brick.crawl_swept
    assert not brick.complete


@pytest.mark.parametrize("when", ["before the mark", "between two units"])
def test_a_secondary_that_restarted_before_a_batch_was_durable_is_not_believed(ctx, when):
    """What was applied in its earlier life may never have reached its disk: all of it is done again, in a new epoch."""
    epoch, boot = ctx.progress.brick().epoch, ctx.secondary(ctx.progress.brick().epoch).boot_id
    manifest = {"kind": "changelog", "start_ns": 1, "end_ns": 2, "last": 5}
    ctx.ledger.open(epoch, 2, manifest, {"E:4:0": "a", "E:5:0": "b"})
    for unit, of in (("E:4:0", "another"), ("E:5:0", boot if when == "between two units" else "another")):
        ctx.ledger.settle(epoch, 2, unit, boot=of)
    mark.update_stime(NAME, epoch, 2)
    assert ctx.progress.brick().front < 5
    told = [
        message for message in ctx.ledger.redis.lrange(control_queue(), 0, -1) if b"start_over" in message
    ]
    assert len(told) == 1
    assert ctx.ledger.forgotten() == 0


def test_a_refusal_is_no_secondary_that_is_out_of_reach(ctx):
    """Whoever has taken over says so to each that asks: that is what ends this node's work."""
    epoch = ctx.progress.brick().epoch
    ctx.drop_connection()
    with Far(ctx.session.secondary, epoch=epoch + 1, **as_session(ctx)):
        for _ in range(3):
            with pytest.raises(SecondaryError) as refused:
                ctx.secondary(epoch)
            assert refused.value.code == "stale-epoch"
            assert ctx.link.rests() is None


def as_session(ctx):
    return {
        "session": ctx.session.id,
        "volume": ctx.session.root or ctx.session.id,
        "holder": ctx.session.instance,
    }
