"""A volume that two clients work on, while its bricks, its mount, it itself and the parts of the session are killed, at random.

What somebody did before the mark is on the secondary whenever the mark moves, and at the end the copy becomes identical by itself.
SEAMARK_STORMS=20-99 in the environment plays these seeds in place of the usual ones; each prints what it does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.system.gluster.load import Load
from tests.system.gluster.test_primary import KINDS
from tests.system.gluster.test_volumes import pair  # noqa: F401
from tests.system.gluster.test_wounds import mount_of
from tests.system.gluster.worked import Worked
from tests.system.harness import agents_among

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1200)]
_FIRST, _, _LAST = os.environ.get("SEAMARK_STORMS", "0-3").partition("-")
_SEEDS = range(int(_FIRST), int(_LAST or _FIRST) + 1)
_FAULTS = 6


class Storm:
    """What happens to a volume, and to the session that it is the primary of."""

    def __init__(self, place, run, draw, bricks):
        self.place, self.run, self.draw, self.bricks = place, run, draw, bricks
        self.faults = (
            [self.kill_brick] * 3 + [self.stop_volume, self.kill_mount] + [self.kill] * 2 + [self.freeze]
        )

    def happen(self):
        for number in range(_FAULTS):
            fault = self.draw.choice(self.faults)
            print(f"{time.time():.3f} {number}: {fault.__name__}", flush=True)
            fault()
            time.sleep(self.draw.uniform(0.2, 3))

    def _rest(self):
        time.sleep(self.draw.uniform(0.1, 4))

    def heal(self):
        """What a brick has missed, before the next fault."""

    def kill_brick(self):
        self._kill_one_of(self.place.name, self.bricks)

    def _kill_one_of(self, volume, bricks):
        brick = self.draw.randrange(bricks)
        self.place.node.kill_brick(volume, brick)
        self._rest()
        self.place.node.start_bricks(volume, brick)
        self.heal()

    def stop_volume(self):
        self.place.node.ask("volume", "stop", self.place.name, "force")
        self._rest()
        self.place.node.ask("volume", "start", self.place.name)
        self.heal()

    def kill_mount(self):
        mount = os.fsencode(mount_of(self.place))
        for pid in self.run.children():
            if mount in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)

    def _service(self):
        (path,) = self.place.state.glob("sessions/*/pids.json")
        return self.draw.choice(sorted(json.loads(path.read_text()).items()))

    def kill(self):
        name, pid = self._service()
        print("   ", name)
        _signal(pid, signal.SIGKILL)

    def freeze(self):
        name, pid = self._service()
        print("   ", name)
        _signal(pid, signal.SIGSTOP)
        self._rest()
        _signal(pid, signal.SIGCONT)


class StormOfKind(Storm):
    """Where sets of bricks have to be healed, or Gluster itself may lose something with the next brick."""

    def __init__(self, at, kind, draw):
        # What was being written to a dispersed volume when all of it ended it may never heal.
        self.at, self.replica, disperse = at, kind.startswith("replica"), kind.startswith("disperse")
        super().__init__(at.place, at.run, draw, 1 if disperse else KINDS[kind][0])
        if disperse:
            self.faults.remove(self.stop_volume)

    def heal(self):
        if self.replica:
            with self.at.stillness():
                self.at.whole()


class StormOverBoth(Storm):
    """The secondary is a volume, too."""

    def __init__(self, both, run, draw):
        super().__init__(both.place, run, draw, 2)
        self.both = both
        self.faults += [self.kill_secondary_brick] * 2 + [
            self.kill_secondary_mount,
            self.kill_secondary_agent,
        ]

    def kill_secondary_brick(self):
        self._kill_one_of(self.both.name, 2)

    def kill_secondary_mount(self):
        if pid := self.both.client():
            _signal(pid, signal.SIGKILL)

    def kill_secondary_agent(self):
        agents = agents_among(self.run.children())
        if agents:
            _signal(self.draw.choice(agents), signal.SIGKILL)


def _signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        print("    (it had ended)")


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_storm(place, seed):
    draw = random.Random(seed)
    kind = draw.choice(sorted(KINDS))
    print(kind)
    with Worked(place, kind).loaded() as at:
        StormOfKind(at, kind, draw).happen()


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_storm_over_both_volumes(pair, seed):  # noqa: F811
    draw = random.Random(seed)
    with pair.run() as run:
        run.wait_idle(300)
        with Load(pair.primary, "load", seed) as load:
            load.go_on(run, 60)
            StormOverBoth(pair, run, draw).happen()
            load.go_on(run, 60)
        pair.wait_same(run, 120)
        run.wait_for(lambda: run.status.get("phase") == "idle", "rest", 300)
        run.wait_for(lambda: run.status.get("failures") == 0, "failures to be mended", 300)
        assert run.stop() == 0
    pair.assert_same_objects()
