"""A search of bricks that is not forgotten before what it found is durable."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from replication.changelog import bricksince
from replication.changelog.brickctimes import changed, ctime_of
from replication.changelog.bricksince import SinceScan

NEVER_NS = 1 << 62


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


def seen(path, gfid, ctime_ns):
    """Have clients see an object with this ctime."""
    name = str(UUID(bytes=gfid))
    times = struct.pack(">BQ6Q", 1, 0, *divmod(ctime_ns, 10**9), 0, 0, 0, 0)
    os.setxattr(Path(path, ".glusterfs", name[:2], name[2:4], name), "trusted.glusterfs.mdata", times)


def of_search(search, path, since_ns, **explained):
    scan = search()
    for until_ns in explained.values():
        scan.explained(until_ns)
    time.sleep(0.05)  # the kernel's clock ticks
    scan.begin(since_ns)
    gfids = found(scan, path)
    scan.cover()
    scan.settle()
    return gfids


@pytest.mark.root
def test_what_clients_cannot_see_is_searched_for_since_the_last_search(search, brick, monkeypatch):
    """Whatever that was for, and whoever only scanned since: he saw no more than clients do."""
    monkeypatch.setattr(bricksince, "_MARGIN_NS", 0)
    path, gfid = brick
    later_ns = time.time_ns() + 10**12
    seen(path, gfid, 5)
    assert of_search(search, path, later_ns) == [gfid]
    assert of_search(search, path, None) == []
    seen(path, gfid, 6)
    assert of_search(search, path, later_ns) == [gfid]
    seen(path, gfid, time.time_ns())
    assert of_search(search, path, None) == []


@pytest.mark.root
@pytest.mark.parametrize("before", [False, True])
def test_what_was_there_at_the_first_look_needs_no_search(search, brick, before):
    path, gfid = brick
    if before:
        of_search(search, path, None)
    seen(path, gfid, 5)
    assert of_search(search, path, None, explained=time.time_ns() + 10**12) == ([gfid] if before else [])


def test_a_brick_that_goes_away_while_it_is_searched(brick):
    path, _ = brick
    found = changed(path, 0, NEVER_NS)
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
    assert [gfid for gfid in changed(str(brick), began_ns, NEVER_NS) if gfid] == [UUID(above).bytes]
    loop = str(uuid4())  # somebody's symlink, which has a name
    handle(brick, loop).parent.mkdir(parents=True, exist_ok=True)
    handle(brick, loop).symlink_to(loop)
    (brick / "loop").hardlink_to(handle(brick, loop))
    assert ctime_of(str(handle(brick, loop))) == handle(brick, loop).lstat().st_ctime_ns
