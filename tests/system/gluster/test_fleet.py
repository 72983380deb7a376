"""Data workers that see a Gluster volume through a mount of their own, at another path, with all of its caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tests.judge import assert_same
from tests.system.fleet import burst
from tests.system.harness import REPOSITORY
from tests.system.trees import many_small_files

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


class Elsewhere:
    """A `seamark worker` that takes itself for another host; ``mount``: where the volume is mounted there."""

    def __init__(self, place, broker, mount):
        self.place, self.mount = place, mount
        self.state = place.base / "elsewhere"
        self.log = open(place.base / "worker.log", "wb")
        self.environment = {
            **os.environ, **place.node.environment, "PYTHONPATH": str(REPOSITORY), "SEAMARK_BROKER": broker,
        }  # fmt: skip
        self.process = None

    def _seamark(self, *words, state):
        return subprocess.run(
            [sys.executable, "-m", "seamark", *words], env={**self.environment, "SEAMARK_STATE_DIR": str(state)},
            capture_output=True, text=True, check=True, cwd="/",
        ).stdout  # fmt: skip

    def start(self):
        said = self._seamark("workers", "export", "fleet", state=self.place.state)
        lines = [
            f'primary = "{self.mount}"' if line.startswith("primary =") else line
            for line in said.splitlines()
        ]
        path = self.state / "config" / "workers" / "fleet.toml"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "seamark", "worker", "--name", "one@elsewhere"], stdout=self.log, stderr=self.log, cwd="/",
            env={**self.environment, "SEAMARK_STATE_DIR": str(self.state), "SEAMARK_HOST": "elsewhere"},
        )  # fmt: skip
        self.place.node.wait_for(lambda: self.row().get("state") in ("idle", "busy"), "the worker")

    def row(self):
        rows = map(json.loads, self._seamark("workers", "--json", state=self.place.state).splitlines())
        return next((row for row in rows if row["worker"] == "one@elsewhere"), {})

    def end(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
        self.log.close()

    def said(self):
        return (self.place.base / "worker.log").read_text()[-3000:]


@pytest.fixture
def fleet(place, redis_server):
    """A session on a volume, and a worker that is to see it elsewhere."""
    place.broker = redis_server.url
    root = place.volume(2)
    many_small_files(root / "many", 20, 2)
    made = []

    def join(mount):
        run = place.run("--jobs", "1", "--name", "fleet", "--broker", place.broker)
        run.wait_idle()
        made.append(Elsewhere(place, place.broker, mount))
        made[0].start()
        return run, made[0]

    yield root, join
    for worker in made:
        worker.end()


@pytest.mark.slow
def test_a_worker_with_another_mount_sends_what_is_there_now(place, fleet):
    """Its mount shows pages, small files and attributes of a second ago; the content has to be of the state that is told."""
    root, join = fleet
    run, worker = join(place.node.mount(place.name, f"{place.name}-elsewhere"))
    with run:
        burst(root / "live", 10)
        for number in range(300):  # how many of them it finds as they were told is a matter of luck
            for path in (root / "live").iterdir():
                with open(path, "r+b") as file:  # no other size, and no other name
                    file.write(os.urandom(70_000))
            time.sleep(0.3)
            if number > 5 and worker.row()["done"] >= 10:
                break
        assert worker.row()["done"] >= 10, worker.said()
        run.wait_same(90)
        assert not worker.row()["rests"], worker.said()
        assert run.stop() == 0
    assert_same(root, place.secondary)


@pytest.mark.slow
def test_a_worker_with_another_volume_in_its_place_sends_nothing(place, fleet):
    root, join = fleet
    other = f"{place.name}x"
    place.node.volume(other, 1)
    mount = place.node.mount(other)
    try:
        run, _ = join(mount)
        with run:
            for number in range(10):
                burst(root / "live" / f"{number}", 10)
                subprocess.run(["cp", "-a", f"{root}/.", mount], check=True)
                time.sleep(0.3)
            run.wait_same(90)
            assert run.stop() == 0
        assert_same(root, place.secondary)
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)
        place.node.delete(other)
