"""What interrupted transfers leave: the basis that is made of it, and when it goes."""

from __future__ import annotations

import contextlib
import os
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.secondary import basis
from replication.secondary.protocol import AgentError
from tests.secondary.primary import Far, Primary

DAY_S = 86400


@pytest.fixture
def sides(tmp_path):
    """A primary with two large files, one of which is here; and where its secondary keeps leftovers."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    for name in ("here", "wanted"):
        (a / name).write_bytes(os.urandom(5000))
    primary = Primary(a)
    gfids = {name: primary.gfid(name.encode()) for name in ("here", "wanted")}
    with Far(b) as client:
        client.begin_crawl("c")
        client.observe([primary.listing(b"")], crawl="c", limbo_until=1)
        client.data([primary.item(gfids["here"], b"here")], [(a / "here").read_bytes()])
    return SimpleNamespace(a=a, b=b, primary=primary, gfids=gfids, staging=b / ".seamark" / "staging")


def plant(sides, age_s):
    """Leftovers of each kind, of a file that is here, of one that is wanted, and of one that nobody knows."""
    (sides.staging / "partial").mkdir(exist_ok=True)
    planted = {}
    for who, gfid in [*sides.gfids.items(), ("unknown", bytes(15) + b"\x77")]:
        names = (f"{gfid.hex()}.1-2-3", f"partial/{gfid.hex()}", f"partial/{gfid.hex()}.basis")
        planted[who] = [sides.staging / name for name in names]
        for path in planted[who]:
            path.write_bytes(b"left over")
            os.utime(path, (time.time() - age_s,) * 2)
    return planted


def left(planted):
    return {who for who, paths in planted.items() for path in paths if path.exists()}


@pytest.mark.parametrize(
    ("age_s", "stay"),
    [
        (10, {"here", "wanted", "unknown"}),
        (DAY_S, {"wanted"}),
        (8 * DAY_S, set()),
    ],
)
@pytest.mark.parametrize("epoch", [1, 2])
def test_what_no_file_wants_goes_with_a_new_epoch_and_while_one_lasts(sides, age_s, stay, epoch):
    planted = plant(sides, age_s)
    with Far(sides.b, epoch=epoch) as client:
        if epoch == 1:
            assert left(planted) == {"here", "wanted", "unknown"}
            client.stage("u", [])
        assert left(planted) == stay


def test_a_transfer_under_way_is_not_swept(sides):
    gfid = sides.gfids["here"]
    with Far(sides.b) as client:
        client.call("file_begin", gfid=gfid.hex(), size=9, version="1-2-3")
        (path,) = sides.staging.glob(f"{gfid.hex()}.*")
        os.utime(path, (0, 0))
        with Far(sides.b) as other:
            other.stage("u", [])
        assert path.exists()


def test_a_commit_ends_what_was_kept(sides):
    planted, gfid = plant(sides, 0), sides.gfids["wanted"]
    with Far(sides.b) as client:
        unit = client.stage("u", [gfid])
        (sides.b / unit["path"] / gfid.hex()).write_bytes((sides.a / "wanted").read_bytes())
        assert client.commit("u", [sides.primary.item(gfid, b"wanted")]) == []
    assert [path.exists() for path in planted["wanted"]] == [True, False, False]
    assert all(path.exists() for path in planted["here"])


def test_the_basis_is_what_arrived_and_the_rest_of_what_was_here(sides):
    gfid, old = sides.gfids["here"], (sides.b / "here").read_bytes()
    partial = sides.staging / "partial"
    partial.mkdir(exist_ok=True)
    with Far(sides.b) as client:
        for arrived in (b"n" * 2000, b"m" * 1000):  # the second try was interrupted sooner than the first
            (partial / gfid.hex()).write_bytes(arrived)
            unit = client.stage("u", [gfid])
            (found,) = (sides.b / unit["basis"]).iterdir()
            assert found.name == gfid.hex()
        assert found.read_bytes() == b"m" * 1000 + b"n" * 1000 + old[2000:]
        assert (sides.b / "here").read_bytes() == old


@given(
    st.binary(max_size=40_000),
    st.lists(st.tuples(st.booleans(), st.integers(1, 20_000)), max_size=6),
    st.integers(4096, 50_000),
)
def test_the_rest_is_put_behind_in_steps(tmp_path_factory, arrived, ranges, step):
    """Holes and data in any order; each request copies a bounded amount, and the next goes on."""
    directory = tmp_path_factory.mktemp("rest")
    whole = b""
    with (directory / "whole").open("wb") as file:
        for is_data, length in ranges:
            whole += os.urandom(length) if is_data else bytes(length)
            file.seek(len(whole) - length)
            file.write(whole[-length:]) if is_data else file.truncate(len(whole))
    (directory / "part").write_bytes(arrived)
    staging = os.open(directory, os.O_RDONLY)
    part, source = (os.open(directory / name, os.O_RDWR) for name in ("part", "whole"))
    agent = SimpleNamespace(tree=SimpleNamespace(staging_fd=staging))
    before, basis._STEP = basis._STEP, step
    try:
        for _ in range(len(whole) // step + 1):
            with contextlib.suppress(AgentError):
                basis._append_rest(agent, part, source)
                break
        else:
            raise AssertionError("it does not end")
    finally:
        basis._STEP = before
        for fd in (staging, part, source):
            os.close(fd)
    assert (directory / "part").read_bytes() == arrived + whole[len(arrived) :]
