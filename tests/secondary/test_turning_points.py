"""A promotion and a seeding are killed at each point at which they write anything: run again, they end, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from replication.remote.answers import SecondaryError
from replication.remote.client import SecondaryClient
from replication.remote.errors import LinkLost
from tests.killing import kill_at_each, traced
from tests.secondary.primary import REPOSITORY, Far
from tests.secondary.test_promotion import contents, promote
from tests.secondary.test_seeding import Turned, kept
from tests.secondary.test_seeding import seeding as seed


@contextmanager
def traced_agent(root, log, point):
    process = subprocess.Popen(
        [sys.executable, "-m", "replication.secondary", "serve", str(root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, bufsize=0,
        cwd="/",
    )  # fmt: skip
    reader = os.fdopen(os.dup(process.stdout.fileno()), "rb", 1 << 20)
    process.stdout.close()
    client = SecondaryClient(reader, process.stdin)
    try:
        client.ping()
        with traced(process.pid, log, point):
            yield client
    finally:
        client.close()
        process.wait(20)
        client._thread.join(5)
        reader.close()


@contextmanager
def work_on(directory):
    base = directory()
    pair = Turned(base)
    try:
        yield pair
    finally:
        pair.far.close()
        shutil.rmtree(base, ignore_errors=True)


def promotion(directory, log, point):
    """Something waits in limbo, a shadow is another's link, a unit is staged."""
    with work_on(directory) as pair:
        os.rename(pair.a / "d" / "e", pair.a / "later")
        pair.look("e", directory=b"d", purge=False)
        os.rename(pair.a / "h", pair.a / "i")
        (pair.a / "h").write_bytes(b"never comes")
        pair.look("h", "i", purge=False)
        pair.client.stage("abc", [pair.primary.gfid(b"g")])
        before = contents(pair.b)
        pair.far.close()
        killed = False
        try:
            with traced_agent(pair.b, log, point) as client:
                client.promotion(do="promote", term=1, by="")
        except LinkLost:
            killed = True
        now = contents(pair.b)
        assert {path: now.get(path) for path in before} == before, "a reader never misses what was there"
        promote(pair.b)
        with pytest.raises(SecondaryError, match="promoted"):
            Far(pair.b, epoch=9)
        assert contents(pair.b) == {**before, "d/e/z": b"content of d/e/z" * 50}
        assert os.lstat(pair.b / "h").st_ino != os.lstat(pair.b / "i").st_ino
        hidden = pair.b / ".seamark"
        assert [os.listdir(hidden / name) for name in ("limbo", "staging", "displaced")] == [[], [], []]
        assert pair.seed("plan").known == 9
        return killed


def seeding(directory, log, point):
    """The old primary wrote what was never sent; and the new one too."""
    with work_on(directory) as pair:
        pair.promote()
        (pair.a / "h").write_bytes(b"never sent")
        (pair.a / "new" / "below").mkdir(parents=True)
        (pair.a / "new" / "below" / "file").write_bytes(b"nor this")
        os.rename(pair.a / "d" / "e", pair.a / "elsewhere")
        (pair.b / "made").write_bytes(b"made here")
        killed = False
        try:
            with (
                traced_agent(pair.a, log, point) as client,
                seed(client, pair.b, pair.base, session="back", volume="vb") as work,
            ):
                work.commit()
        except LinkLost:
            killed = True
        try:
            pair.seed()
        except SecondaryError as error:
            if error.code != "owned":  # else it was killed when all was done
                raise
        assert pair.back() <= {b"content of h" * 50, b"made here"}
        found = kept(pair.a)
        assert {path for path in found if found[path] is not None} == {"h", "new/below/file"}
        assert (found["h"], found["new/below/file"]) == (b"never sent", b"nor this")
        return killed


@pytest.mark.parametrize("work", [promotion, seeding])
@pytest.mark.parametrize(
    "most", [2, pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(1800)], id="each")]
)
def test_killed_before_a_call(work, most, in_memory, tmp_path):
    kill_at_each(work.__name__, lambda log, point: work(in_memory, log, point), tmp_path / "calls", most)
