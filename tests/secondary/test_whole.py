"""Content that comes with its observation."""

from __future__ import annotations

import os

import pytest

from replication.observation import Change, Listing
from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from replication.volume.content import SMALL, read_observed
from replication.volume.directory import DirectoryVolume
from replication.volume.identity import ROOT_GFID
from tests.secondary.primary import Far


@pytest.fixture
def sides(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    far = Far(b)
    yield a, b, far.client, DirectoryVolume(os.fsencode(a))
    far.close()


def look(volume, *names):
    entries = [volume.observe(volume.root_fd, os.fsencode(name), Change.DATA) for name in names]
    return [
        e._replace(inode=e.inode._replace(ctime_ns=os.stat(volume.root + b"/" + e.name).st_ctime_ns))
        for e in entries
    ]


def tell(client, entries, content, position=1):
    listings = [Listing(ROOT_GFID, entries)]
    return client.submit_observe(
        listings, position=position, limbo_until=1, content=content, compress=True
    ).result()


def along(volume, entries):
    return [(e.inode.gfid.hex(), *reversed(read_observed(volume, volume.root_fd, e))) for e in entries]


def test_what_comes_along_is_there_and_not_asked_for(sides):
    a, b, client, volume = sides
    (a / "one").write_bytes(b"1" * 5000)
    (a / "two").write_bytes(b"2")
    os.setxattr(a / "two", "user.x", b"y")
    entries = look(volume, "one", "two")
    answer = tell(client, entries, along(volume, entries))
    assert (answer.need, answer.content) == ([], (2, 5001))
    assert (b / "one").read_bytes() == b"1" * 5000
    assert os.getxattr(b / "two", "user.x") == b"y"
    assert client.dirty()[0] == []


def test_only_what_came_along_is_not_asked_for(sides):
    a, b, client, volume = sides
    (a / "one").write_bytes(b"1")
    (a / "two").write_bytes(b"2")
    entries = look(volume, "one", "two")
    answer = tell(client, entries, along(volume, entries[:1]))
    assert [gfid for gfid, _ in answer.need] == [entries[1].inode.gfid.hex()]
    assert not (b / "two").exists()


def test_what_is_right_already_is_passed_over(sides):
    a, b, client, volume = sides
    (a / "one").write_bytes(b"1")
    entries = [e._replace(change=Change.NONE) for e in look(volume, "one")]
    tell(client, entries, along(volume, entries))
    before = os.stat(b / "one").st_ino
    answer = tell(client, entries, along(volume, entries), position=2)
    assert (answer.need, answer.content) == ([], (0, 0))
    assert os.stat(b / "one").st_ino == before


def test_a_payload_that_is_too_short_is_refused_and_places_nothing(sides):
    a, b, client, volume = sides
    (a / "one").write_bytes(b"123")
    entries = look(volume, "one")
    with pytest.raises(SecondaryError, match="shorter"):
        tell(client, entries, [(entries[0].inode.gfid.hex(), {}, b"12")])
    assert os.listdir(b) == [".seamark"]


def test_a_file_in_the_way_is_displaced(sides):
    a, b, client, volume = sides
    (a / "one").write_bytes(b"ours")
    (b / "one").write_bytes(b"theirs")
    entries = look(volume, "one")
    tell(client, entries, along(volume, entries))
    assert (b / "one").read_bytes() == b"ours"
    assert [p.read_bytes() for p in (b / ".seamark" / "displaced").rglob("one")] == [b"theirs"]


def test_only_a_file_as_it_was_observed_is_read(sides):
    a, _, _, volume = sides
    for name, size in (("changed", 10), ("linked", 10), ("large", SMALL + 1), ("empty", 0), ("sparse", 0)):
        (a / name).write_bytes(bytes(size))
    os.truncate(a / "sparse", 50_000)
    os.link(a / "linked", a / "other name")
    entries = look(volume, "changed", "linked", "large", "empty", "sparse")
    (a / "changed").write_bytes(b"2" * 10)
    assert [read_observed(volume, volume.root_fd, e) for e in entries] == [None] * 5


@pytest.mark.parametrize("fault", ["journal:1", "place:1", "place:2", "commit:2", "committed:2"])
def test_killed_while_it_places_what_came_along(tmp_path, fault):
    """What stands there already is known for ours when the same request comes again."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    for name in ("one", "two"):
        (a / name).write_bytes(name.encode())
    volume = DirectoryVolume(os.fsencode(a))
    entries = look(volume, "one", "two")
    far = Far(b, fault=fault)
    with pytest.raises(LinkLost):
        tell(far.client, entries, along(volume, entries))
    far.close()
    with Far(b) as client:
        tell(client, entries, along(volume, entries))
        client.sync()
        assert client.check() == []
        assert (client.stat()["displaced"], client.dirty()[0]) == (0, [])
    assert [(b / name).read_bytes() for name in ("one", "two")] == [b"one", b"two"]
