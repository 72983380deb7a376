"""A search of bricks that is not forgotten before what it found is durable."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

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
