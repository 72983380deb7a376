"""A primary, a copy of it with a real agent on it, and the machine that compares them, in this process."""

from __future__ import annotations

import os
import subprocess
import time

from replication.secondary.filters import EVERYTHING, Filters
from replication.verify.unit import run_unit
from replication.volume.directory import DirectoryVolume
from scheduler.verify.outcome import outcome, rows
from scheduler.verify.store import Store
from scheduler.verify.verification import Asked, Verification
from tests.secondary.primary import Far


class Settled:
    """Everything has arrived long ago; or, with ``arrived`` 0, that is not known."""

    epoch = 1

    def __init__(self, arrived=1 << 62, patience=0.0):
        self.arrived, self._patience = arrived, patience

    def token(self):
        return "t1"

    def passed(self, _token):
        return False

    def arrived_ns(self):
        return self.arrived

    def patience(self):
        return self._patience


class Here:
    """Does units at once. ``before``: called with each payload; ``lose``: whether a unit is to vanish the first time."""

    def __init__(self, pair, before=lambda _payload: None, lose=lambda _number: False):
        self.pair, self.before, self.lose = pair, before, lose
        self.outcomes, self.lost_ones, self.done = {}, [], []

    def send(self, units):
        for number, payload in units.items():
            if self.lose(number) and number not in self.lost_ones:
                self.lost_ones.append(number)
                continue
            self.before(payload)
            self.done.append(payload["kind"])
            self.outcomes[number] = run_unit(
                payload,
                self.pair.volume,
                self.pair.far.client,
                self.pair.filters,
                self.pair.far.hello["fs"],
                lambda: None,
            )

    def take(self):
        taken, self.outcomes = self.outcomes, {}
        return taken

    def lost(self, units):
        return [number for number in units if number in self.lost_ones and number not in self.outcomes]


class Pair:
    """``a`` and its copy ``b``."""

    def __init__(self, a, b, *, filters=(), user=None):
        self.a, self.b = a, b
        # -1: to the nanosecond; by itself rsync is content with the same second
        subprocess.run(
            ["rsync", "-aHAXS", "--numeric-ids", "--modify-window=-1", f"{a}/", f"{b}/"], check=True
        )
        self.filters = Filters(filters) if filters else EVERYTHING
        self.far = Far(b, adopt=True, filters=list(filters), user=user)
        self.volume = DirectoryVolume(os.fsencode(a))

    def close(self):
        self.far.close()
        self.volume.close()

    def verification(self, *, store=None, workers=None, settling=None, jobs=2, **asked):
        store = store or Store(":memory:")
        if store.get("asked") is None:
            Verification.begin(store, Asked(**asked))
        return Verification(store, workers or Here(self), settling or Settled(), jobs)

    def compare(self, **options):
        """Until it is done; the machine."""
        machine = self.verification(**options)
        until = time.monotonic() + 60
        while not machine.done:
            machine.step()
            assert time.monotonic() < until, machine.phase
        return machine

    def found(self, **options):
        """{path: kind} of all that is reported."""
        machine = self.compare(**options)
        return {row["path"]: row["kind"] for row in rows(machine.store, unsettled=True)}

    def outcome(self, **options):
        return outcome(self.compare(**options).store)


def keeping_times(path, change):
    """Change something in or of ``path`` without a trace in its directory's times."""
    parent = os.path.dirname(path)
    before = os.stat(parent)
    change()
    os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
