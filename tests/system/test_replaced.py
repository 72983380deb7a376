"""Readers of the secondary while files are replaced on the primary, as editors do: always there, always whole."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

from tests.judge import assert_same
from tests.system.test_faults import secondary_agents

ROUNDS, SAVES = 6, 40  # in a row, and then a pause until the last of them has arrived
NAMES = {"small": 300, "large": 200_000, "d/kept": 5_000}  # and about how many bytes each has


def version(number, size):
    """One whole version of a file: its number, all the way through."""
    line = b"%06d\n" % number
    return line * (size // len(line) + number % 7)


def save(path, number, size):
    """Write aside, rename over: the name on the primary is never absent. The old file stays under another name."""
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(version(number, size))
    if path.name == "kept":
        backup = path.with_name("kept~")
        backup.unlink(missing_ok=True)
        os.link(path, backup)
    os.rename(aside, path)


def kill_agents(run):
    for pid in secondary_agents(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Reader:
    """Opens a name again and again until told to stop."""

    def __init__(self, path, size):
        self.path, self.size = path, size
        self.seen = set()
        self.wrong = []
        self.stopped = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        while not self.stopped:
            try:
                content = self.path.read_bytes()
            except OSError as error:
                self.wrong.append(str(error))
                continue
            number = int(content[:6]) if content[:6].isdigit() else -1
            self.seen.add(number)
            if number < 0 or content != version(number, self.size):
                self.wrong.append(f"{number}: {len(content)} bytes, not one whole version")
            time.sleep(0.0005)

    def stop(self):
        self.stopped = True
        self._thread.join()


@pytest.mark.parametrize(
    ("method", "killed"),
    [
        ("stream", False),
        pytest.param("rsync", False, marks=pytest.mark.slow),
        pytest.param("tar", False, marks=pytest.mark.slow),
        pytest.param("stream", True, marks=pytest.mark.slow),
    ],
)
def test_a_name_that_is_replaced_is_never_absent_nor_half_there(place, method, killed):
    (place.primary / "d").mkdir()
    for name, size in NAMES.items():
        (place.primary / name).write_bytes(version(0, size))
    with place.run("--sync-method", method) as run:
        run.wait_idle()
        run.wait_same()
        readers = [Reader(place.secondary / name, size) for name, size in NAMES.items()]
        try:
            for turn in range(ROUNDS):
                for number in range(turn * SAVES + 1, (turn + 1) * SAVES + 1):
                    for name, size in NAMES.items():
                        save(place.primary / name, number, size)
                    if killed and number % (3 * SAVES) == SAVES // 2:
                        kill_agents(run)
                    time.sleep(0.02)
                run.wait_for(lambda last=number: all(last in r.seen for r in readers), f"version {number}")
            run.wait_same()
        finally:
            for reader in readers:
                reader.stop()
        assert run.stop() == 0
    for reader in readers:
        assert reader.wrong == [], (reader.path.name, len(reader.wrong), reader.wrong[:3])
    assert_same(place.primary, place.secondary)
