"""A search of bricks that is not forgotten before what it found is durable."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from replication.changelog import bricksince
from replication.changelog.brickctimes import changed, ctime_of
from replication.changelog.bricksince import SinceScan


@pytest.fixture
def search(tmp_path):
    """Calling it gives one that goes on with what the last one left."""
    made = []

    def begun():
        made.append(SinceScan(tmp_path / "bricks.since"))
        return made[-1]

    yield begun
    for each in made:
        each.close()


@pytest.fixture
def brick(tmp_path):
    """A brick with one object; and its gfid."""
    gfid = uuid4()
    name = str(gfid)
    handle = Path(tmp_path, "brick", ".glusterfs", name[:2], name[2:4], name)
    handle.parent.mkdir(parents=True)
    handle.touch()
    return str(tmp_path / "brick"), gfid.bytes


def found(scan, path):
    all_found = []
    while scan.pending:
        all_found += scan.some([path])
    return all_found


def test_what_was_found_and_not_written_is_found_again(search, brick):
    path, gfid = brick
    first = search()
    first.begin(0)
    assert found(first, path) == [gfid]
    first.settle()  # of a segment that was closed before
    after = search()
    assert after.pending and found(after, path) == [gfid]
    after.cover()
    after.settle()
    assert not search().pending


def test_a_search_that_begins_anew_is_not_settled_by_the_one_before(search, brick):
    path, gfid = brick
    scan = search()
    scan.begin(0)
    found(scan, path)
    scan.cover()
    scan.begin(0)
    scan.settle()
    assert scan.pending and found(scan, path) == [gfid]
    assert search().pending


def test_a_brick_that_cannot_be_read_to_its_end_is_searched_again(search, brick, monkeypatch):
    """Its file system is gone, and that nothing is found there says nothing."""
    path, gfid = brick
    scan = search()
    handles = Path(path) / ".glusterfs"
    handles.rename(handles.with_name("away"))
    scan.begin(0)
    for _ in range(3):
        assert scan.some([path]) == []
    scan.cover()
    scan.settle()
    assert scan.pending and scan.unread == {path} and search().pending
    handles.with_name("away").rename(handles)
    assert scan.some([path]) == []  # not at once
    monkeypatch.setattr(bricksince, "_RETRY_S", 0.0)
    monkeypatch.setattr(scan, "_retry_at", 0.0)
    assert found(scan, path) == [gfid]
    scan.cover()
    scan.settle()
    assert not search().pending


def test_a_brick_that_goes_away_while_it_is_searched(brick):
    path, _ = brick
    found = changed(path, 0, unexplained=False)
    next(found)
    (Path(path) / ".glusterfs").rename(Path(path) / "away")
    (Path(path) / ".glusterfs").mkdir()
    with pytest.raises(OSError, match=r"\.glusterfs"):
        list(found)


def handle(brick, gfid):
    return brick / ".glusterfs" / gfid[:2] / gfid[2:4] / gfid


def test_a_directory_that_is_deeper_than_handles_lead(tmp_path):
    """The handle of a directory is a symlink by way of the one above it, and 40 of them are followed."""
    brick, above, path = tmp_path / "brick", str(UUID(int=1)), tmp_path / "brick"
    handle(brick, above).parent.mkdir(parents=True)
    handle(brick, above).symlink_to("../../..")
    for number in range(60):
        gfid, path = str(uuid4()), path / f"d{number}"
        path.mkdir()
        handle(brick, gfid).parent.mkdir(parents=True, exist_ok=True)
        handle(brick, gfid).symlink_to(Path("../..", above[:2], above[2:4], above, path.name))
        above = gfid
    time.sleep(0.05)
    began_ns = time.time_ns() - 10_000_000
    (path / "file").touch()
    assert ctime_of(str(handle(brick, above))) == path.stat().st_ctime_ns >= began_ns
    assert [gfid for gfid in changed(str(brick), began_ns, unexplained=False) if gfid] == [UUID(above).bytes]
    loop = str(uuid4())  # somebody's symlink, which has a name
    handle(brick, loop).parent.mkdir(parents=True, exist_ok=True)
    handle(brick, loop).symlink_to(loop)
    (brick / "loop").hardlink_to(handle(brick, loop))
    assert ctime_of(str(handle(brick, loop))) == handle(brick, loop).lstat().st_ctime_ns
