"""Deltas by blocks with the real secondary agent: whatever was changed and wherever it stopped, rsync finds no difference."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replication.remote.target import Target
from replication.transfer import delta
from replication.transfer.stream import StreamSender
from tests.transfer.test_movers_and_agent import MIB, Session

BLOCK = delta.BLOCK


@pytest.fixture
def session(primary, tmp_path):
    """With one large file, which is there."""
    root = tmp_path / "secondary"
    session = Session(primary, root, Target(os.fsencode(root)), None)
    primary.write("big", os.urandom(40 * MIB + 5000))
    send(session)
    yield session
    session.close()


def send(session, **options):
    """Send what is wanted; the sender and its results."""
    sender = StreamSender(session.primary.volume, session.client, compress=False, **options)
    return sender, sender.send(session.wanted())


def overwrite(session, *pieces):
    with (session.primary.root / "big").open("r+b") as file:
        for offset, content in pieces:
            file.seek(offset)
            file.write(content)


def test_only_blocks_that_differ_are_sent(session):
    overwrite(session, (20 * MIB, os.urandom(MIB)), (40 * MIB, b"near the end"))
    _, (result,) = send(session)
    assert result.status in {"ok", "changed"}
    assert MIB <= result.bytes_sent <= MIB + 2 * BLOCK
    assert session.differences() == []


edits = st.lists(
    st.one_of(
        st.tuples(st.just("overwrite"), st.integers(0, 5 * MIB), st.integers(1, 300_000)),
        st.tuples(st.just("truncate"), st.integers(MIB + 1, 6 * MIB), st.just(0)),
        st.tuples(st.just("append"), st.just(0), st.integers(1, 2 * MIB)),
        st.tuples(st.just("insert"), st.integers(0, MIB), st.integers(1, 1000)),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits, st.randoms(use_true_random=False), st.booleans())
def test_any_change_converges(session, edits, draw: random.Random, compress):
    path = session.primary.root / "big"
    for kind, offset, length in edits:
        content = bytearray(path.read_bytes())
        if kind == "truncate":
            del content[offset:]
        elif kind == "insert":
            content[offset:offset] = draw.randbytes(length)
        else:
            at = len(content) if kind == "append" else min(offset, len(content))
            content[at : at + length] = draw.randbytes(length)
        path.write_bytes(content)
    sender = StreamSender(session.primary.volume, session.client, compress=compress)
    assert {result.status for result in sender.send(session.wanted())} <= {"ok", "changed"}
    assert sender.left == []
    assert session.differences() == []


class Broken(Exception):
    pass


@pytest.mark.parametrize("changed_again", [False, True])
def test_an_interrupted_one_is_gone_on_with_and_believed_in_nothing(session, changed_again):
    """The copy under way has whole ranges of the old version, whose blocks were not sent yet."""
    overwrite(session, *((at * MIB, os.urandom(BLOCK)) for at in range(40)))
    seen = [0]

    def progress(_files, size):
        seen[0] += size
        if seen[0] > 20 * MIB:
            raise Broken

    with pytest.raises(Broken):
        send(session, progress=progress)
    session.link.close()
    session.client.close()
    again = Session(session.primary, session.root, session.target, None)
    session.link, session.client = again.link, again.client
    (under_way,) = (session.root / ".seamark" / "staging").glob("*.delta")
    assert under_way.stat().st_size >= 16 * MIB
    if changed_again:
        overwrite(session, (3 * MIB, b"once more"))
    _, (result,) = send(session)
    assert result.bytes_sent <= 41 * BLOCK
    assert session.differences() == []
    assert not under_way.exists()


def test_who_stops_in_the_middle_and_stays_connected_lets_others_go_on(session):
    overwrite(session, (3 * MIB, b"once more"))
    (item,) = session.wanted()

    def progress(_files, size):
        if size:
            raise Broken

    for how in ("data", "new"):
        sender = StreamSender(session.primary.volume, session.client, compress=False, progress=progress)
        with pytest.raises(Broken):
            sender.send([item._replace(how=how)])
        session.client.call("ping")
        other = Session(session.primary, session.root, session.target, None)
        other.client.call("file_begin", gfid=item.gfid.hex(), size=item.size, version="delta")
        other.close()


@pytest.mark.parametrize("rsync_next", [True, False])
def test_shifted_content_is_left_to_rsync(session, rsync_next):
    path = session.primary.root / "big"
    path.write_bytes(b"inserted" + path.read_bytes())
    items = session.wanted()
    sender = StreamSender(session.primary.volume, session.client, compress=False, rsync_next=rsync_next)
    results = sender.send(items)
    if not rsync_next:
        assert results[0].bytes_sent > 40 * MIB
        assert session.differences() == []
        return
    assert (results, sender.left) == ([], items)
    session.client.stage("u", [items[0].gfid])
    assert list((session.root / ".seamark" / "staging").glob("*.delta")) == []


def test_what_is_appended_is_sent_by_blocks_too(session):
    with (session.primary.root / "big").open("ab") as file:
        file.write(os.urandom(30 * MIB))
    sender, (result,) = send(session, rsync_next=True)
    assert sender.left == []
    assert result.bytes_sent <= 30 * MIB + BLOCK
    assert session.differences() == []


def test_a_file_with_holes_is_left_to_rsync_or_goes_whole(session):
    path = session.primary.root / "big"
    os.truncate(path, 60 * MIB)
    sender, results = send(session, rsync_next=True)
    assert (results, len(sender.left)) == ([], 1)
    _, (result,) = send(session)
    assert result.status in {"ok", "changed"}
    assert session.differences() == []
    assert (session.root / "big").stat().st_blocks * 512 < 50 * MIB
