"""Killed before each system call by which a snapshot is taken or removed, a view made, or a root goes back to a snapshot."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys

import pytest

from replication.remote.client import SecondaryClient
from replication.remote.errors import LinkLost
from tests.judge import assert_same
from tests.killing import kill_at_each, traced
from tests.secondary.primary import REPOSITORY, Far, Primary
from tests.secondary.roots import root_of
from tests.secondary.test_goback import Past
from tests.secondary.test_goback import promote as promote_at_once
from tests.secondary.test_snapshots import take, until_done, wait_for_sweep
from tests.secondary.test_views import left

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]
SOME = [pytest.param(12, id="some"), pytest.param(None, id="each", marks=pytest.mark.slow)]


def fill(primary):
    (primary / "d" / "e").mkdir(parents=True)
    (primary / "f").write_bytes(b"f" * 5000)
    os.link(primary / "f", primary / "d" / "another")
    (primary / "d" / "e" / "g").write_bytes(b"g")
    os.symlink("nowhere", primary / "s")
    os.mkfifo(primary / "fifo")
    os.setxattr(primary / "d", "user.d", b"d")


def take_one(client):
    take(client, keep="1h all")


def take_and_remove(client):
    name = take(client, keep="1h all")["name"]
    until_done(client, "snapshot_remove", name=name, force=True)


def view(client):
    client.finish("view", method="auto")
    client.finish("view_drop")


# For who takes them all snapshots are of one second: so each has to take another name than the first that it tries.
STANDS = """
import sys, time
from types import SimpleNamespace
from replication.secondary import snapshots
from replication.secondary.__main__ import main
snapshots.time = SimpleNamespace(**{{**vars(time), "time_ns": lambda: {at_ns}}})
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("most", SOME)
@pytest.mark.parametrize("kind", [pytest.param("btrfs subvolume", marks=pytest.mark.slow), "xfs"])
@pytest.mark.parametrize("scene", [take_one, take_and_remove, view], ids=lambda scene: scene.__name__)
def test_of_what_was_killed_nothing_is_left(tmp_path, kind, scene, most):
    with root_of(kind, tmp_path / "fs") as root:
        primary = root.parent / "primary"
        primary.mkdir()
        fill(primary)
        epochs = itertools.count(2)
        with Far(root) as client:
            Primary(primary).crawl(client)
            good, at_ns = map(take(client, keep="1h all").get, ("name", "taken_ns"))
            view(client)  # what is made once for all is there

        def work(log, point):
            far = Far(root, epoch=next(epochs), start=["-c", STANDS.format(at_ns=at_ns)])
            killed = False
            try:
                with traced(far.process.pid, log, point):
                    scene(far.client)
                    far.client.ping()
            except LinkLost:
                killed = True
            finally:
                far.close()
            with Far(root, epoch=next(epochs)) as client:
                wait_for_sweep(root)
                names = [r["name"] for r in client.call("snapshots").header["items"]]
                assert good in names
                directory = root / ".seamark" / "snapshots"
                assert sorted(path.name for path in directory.iterdir()) == names
                for name in names:
                    assert_same(primary, directory / name / "root")
                    if name != good:
                        until_done(client, "snapshot_remove", name=name, force=True)
                client.finish("views_discard")
                assert client.check() == []
            assert left(root) == []
            assert_same(primary, root)
            return killed

        kill_at_each(f"{scene.__name__} on {kind}", work, tmp_path / "log", most)


# One answer to each request, however busy the machine is: so the calls are always the same ones.
PATIENT = """
import sys
from replication.secondary import steps
from replication.secondary.__main__ import main
steps._SLICE_S = 3600.0
sys.exit(main(sys.argv[1:]))
"""


@contextlib.contextmanager
def ungreeted(root):
    """An agent that nobody has greeted: its process, and a client of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PATIENT, "serve", str(root)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, bufsize=0, cwd="/",
    )  # fmt: skip
    reader = os.fdopen(os.dup(process.stdout.fileno()), "rb", 1 << 20)
    process.stdout.close()
    client = SecondaryClient(reader, process.stdin)
    try:
        yield process, client
    finally:
        client.close()
        process.wait(20)
        client._thread.join(5)
        reader.close()


@pytest.mark.parametrize("most", SOME)
def test_a_root_goes_back_whatever_was_killed(tmp_path, most):
    with root_of("xfs", tmp_path / "fs") as there:
        numbers = itertools.count()

        def work(log, point):
            base = there.parent / f"try{next(numbers)}"
            base.mkdir()
            past = Past(base / "root")
            killed = False
            with ungreeted(past.root) as (process, client):
                try:
                    with traced(process.pid, log, point):
                        client.promotion(do="promote", term=1, by="a test", to=past.name)
                        client.ping()
                except LinkLost:
                    killed = True
            facts = promote_at_once(past.root, to=past.name)
            assert facts["promoted"]["done"]
            past.judge()
            shutil.rmtree(base)
            return killed

        kill_at_each("going back", work, tmp_path / "log", most)
