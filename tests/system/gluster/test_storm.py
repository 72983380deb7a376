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

from tests.system.gluster.test_primary import KINDS
from tests.system.gluster.test_wounds import mount_of
from tests.system.gluster.worked import Worked

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1200)]
_FIRST, _, _LAST = os.environ.get("SEAMARK_STORMS", "0-5").partition("-")
_FAULTS = 6


class Storm:
    """What happens to the volume and the session at a seed."""

    def __init__(self, at, kind, draw):
        self.at, self.kind, self.draw = at, kind, draw
        self.node, self.name = at.node, at.name
        self.replica, self.disperse = kind.startswith("replica"), kind.startswith("disperse")

    def happen(self):
        faults = [self.kill_brick] * 3 + [self.kill_mount] + [self.kill] * 2 + [self.freeze]
        if not self.disperse:  # what was being written then Gluster itself may never heal
            faults.append(self.stop_volume)
        for number in range(_FAULTS):
            fault = self.draw.choice(faults)
            print(f"{time.time():.3f} {number}: {fault.__name__}", flush=True)
            fault()
            time.sleep(self.draw.uniform(0.2, 3))

    def _rest(self):
        time.sleep(self.draw.uniform(0.1, 4))

    def _heal(self):
        """Else Gluster itself may lose something with the next brick."""
        if self.replica:
            with self.at.stillness():
                self.at.whole()

    def kill_brick(self):
        brick = 0 if self.disperse else self.draw.randrange(KINDS[self.kind][0])
        self.node.kill_brick(self.name, brick)
        self._rest()
        self.node.start_bricks(self.name, brick)
        self._heal()

    def stop_volume(self):
        self.node.ask("volume", "stop", self.name, "force")
        self._rest()
        self.node.ask("volume", "start", self.name)
        self._heal()

    def kill_mount(self):
        mount = os.fsencode(mount_of(self.at.place))
        for pid in self.at.run.children():
            if mount in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)

    def _service(self):
        (path,) = self.at.place.state.glob("sessions/*/pids.json")
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


def _signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        print("    (it had ended)")


@pytest.mark.parametrize("seed", range(int(_FIRST), int(_LAST or _FIRST) + 1))
def test_a_storm(place, seed):
    draw = random.Random(seed)
    kind = draw.choice(sorted(KINDS))
    print(kind)
    with Worked(place, kind).loaded() as at:
        Storm(at, kind, draw).happen()
