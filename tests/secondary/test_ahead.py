"""Files of a volume that are placed together, many at a time."""

from __future__ import annotations

import os
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest

from replication.secondary import owner, through, whole
from replication.secondary.changes import Changes
from replication.secondary.layout import ROOT_GFID
from replication.secondary.metadata import Item
from replication.secondary.protocol import VERSION

DIRECTORY, FILE = 0o040755, 0o100644


@pytest.fixture
def agent(tmp_path):
    hello = {"protocol": VERSION, "session": "s", "volume": "v", "epoch": 1, "create": True}
    made, _ = owner.hello(os.fsencode(tmp_path / "b"), hello, None)
    yield made
    made.gfids = None
    made.close()


def entry(name, gfid, mode, size=0):
    return [
        name,
        gfid.hex(),
        mode,
        os.getuid(),
        os.getgid(),
        1,
        int.from_bytes(gfid[:4], "big"),
        0,
        size,
        5,
        5,
        5,
        None,
        1,
    ]


def tell(agent, position, listings, content=()):
    """``listings``: of each directory the entries that were seen; ``content``: (gfid, bytes)."""
    request = {
        "position": position, "limbo_until": 1, "content": [[gfid.hex(), {}] for gfid, _ in content],
        "listings": [[parent.hex(), False, 0, True, entries] for parent, entries in listings],
    }  # fmt: skip
    return whole.observe(agent, request, b"".join(blob for _, blob in content))


def test_changes_of_a_file_that_is_not_here_any_more_are_not_taken_for_made(agent, tmp_path):
    """Somebody took it away while they came: its row wants its content, and has no object."""
    gfid = os.urandom(16)
    tell(agent, 1, [(ROOT_GFID, [entry("file", gfid, FILE, 10)])])
    (tmp_path / "aside").touch()
    (tmp_path / "live").write_bytes(b"x" * 10)
    fd, live = (os.open(tmp_path / name, os.O_RDWR) for name in ("aside", "live"))
    errors = []
    item = Item(gfid.hex(), 10, FILE, os.getuid(), os.getgid(), 5, 5, 5, 5, {})
    assert through.change(agent, item, Changes(fd, live, 0, 4096, lambda: None), errors) == 0
    assert [error[:2] for error in errors] == [[gfid.hex(), "not-found"]]
    os.close(fd)
    os.close(live)


def test_files_of_more_directories_than_stay_open_come_into_their_own(agent, tmp_path):
    """Each directory has some above it that are opened with it, and the first ones are closed meanwhile."""
    deep = [[os.urandom(16) for _ in range(6)] for _ in range(128)]
    listings = [(ROOT_GFID, [entry(f"d{n}", chain[0], DIRECTORY) for n, chain in enumerate(deep)])]
    for chain in deep:
        listings += [(above, [entry("d", below, DIRECTORY)]) for above, below in pairwise(chain)]
    tell(agent, 1, listings)
    # What a volume has, without one: files are made aside under a name.
    agent.gfids = SimpleNamespace(
        making=lambda _fd: nullcontext(True), seen=lambda _gfid: None, refuse_if_away=lambda: None,
        make=lambda fd, name, _gfid, mode: os.mknod(name, mode, dir_fd=fd),
    )  # fmt: skip
    files = [(os.urandom(16), b"%d" % n) for n in range(len(deep))]
    seen = [
        (chain[-1], [entry("file", gfid, FILE, len(content))])
        for chain, (gfid, content) in zip(deep, files, strict=True)
    ]
    assert tell(agent, 2, seen, files)["content"] == [128, sum(len(content) for _, content in files)]
    found = {
        str(path.relative_to(tmp_path / "b")): path.read_bytes() for path in (tmp_path / "b").rglob("file")
    }
    assert found == {f"d{n}/d/d/d/d/d/file": content for n, (_, content) in enumerate(files)}
