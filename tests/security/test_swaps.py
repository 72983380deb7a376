"""A hostile user of the secondary's host, who owns directories of the replica and swaps them for links to elsewhere.

What is written must arrive in the replica or nowhere: the tree that the links lead to has the same names, so that whatever
follows one changes, removes or reads something there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest

from tests.system.test_faults import busy
from tests.system.trees import many_small_files

SECONDS = 12


def fingerprint(root):
    """Everything of a tree that a stray write, rename, chmod or utime would change."""
    found = {}
    for directory, dirs, files in os.walk(root):
        for name in [".", *dirs, *files]:
            path = os.path.join(directory, name)
            s = os.lstat(path)
            content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if stat.S_ISREG(s.st_mode) else ""
            found[os.path.relpath(path, root)] = (
                s.st_mode,
                s.st_uid,
                s.st_gid,
                s.st_mtime_ns,
                s.st_ctime_ns,
                s.st_ino,
                content,
            )
    return found


class Swapper(threading.Thread):
    """Directories and files of the replica become links to the canary, and themselves again, as fast as it goes."""

    def __init__(self, replica, canary, side, seed):
        super().__init__(daemon=True)
        self.replica, self.canary, self.side = str(replica), str(canary), str(side)
        self.draw = random.Random(seed)
        self.swaps = 0
        self.stop = threading.Event()

    def run(self):
        while not self.stop.is_set():
            for directory, dirs, files in os.walk(self.replica):
                if ".seamark" in dirs:
                    dirs.remove(".seamark")  # it is of mode 0700, and belongs to who writes
                for name in self.draw.sample(dirs, len(dirs)) + self.draw.sample(files, min(3, len(files))):
                    self._swap(os.path.join(directory, name))
                    if self.stop.is_set():
                        return

    def _swap(self, path):
        aside = os.path.join(self.side, str(self.swaps))
        with contextlib.suppress(OSError):
            os.rename(path, aside)
            os.symlink(os.path.join(self.canary, os.path.relpath(path, self.replica)), path)
            self.swaps += 1
            time.sleep(self.draw.choice((0, 0, 0.0005, 0.003)))
        with contextlib.suppress(OSError):
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.rename(aside, path)


@pytest.mark.root
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "method",
    ["stream", pytest.param("rsync", marks=pytest.mark.slow), pytest.param("tar", marks=pytest.mark.slow)],
)
def test_links_in_the_place_of_directories_lead_nowhere(place, method):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    many_small_files(place.primary, 120, 6)
    (place.primary / "deep" / "a" / "b").mkdir(parents=True)
    many_small_files(place.primary / "deep" / "a" / "b", 30, 3)
    side, canary = place.base / "side", place.base / "canary"
    side.mkdir()
    with place.run("--sync-method", method) as run:
        run.wait_idle(60)
        shutil.copytree(place.primary, canary, symlinks=True)
        before = fingerprint(canary)
        swapper, stop = Swapper(place.secondary, canary, side, seed), threading.Event()
        writer = threading.Thread(target=busy, args=(place.primary, stop, seed))
        swapper.start()
        writer.start()
        until = time.monotonic() + SECONDS
        draw = random.Random(seed)
        while (
            time.monotonic() < until
        ):  # what is swapped changes, too: content, names, metadata, whole directories
            directory = place.primary / f"d{draw.randrange(6)}"
            with contextlib.suppress(OSError):
                (directory / f"f{draw.randrange(120)}").write_bytes(
                    os.urandom(draw.choice((10, 5000, 300_000)))
                )
                (directory / f"new{draw.randrange(9)}").write_text("new")
                (directory / f"new{draw.randrange(9)}").unlink(missing_ok=True)
                os.chmod(directory, draw.choice((0o755, 0o700, 0o711)))
                os.rename(directory / f"f{draw.randrange(120)}", directory / f"moved{draw.randrange(99)}")
            shutil.rmtree(place.primary / "deep" / "a" / "b" / "d0", ignore_errors=True)
            with contextlib.suppress(OSError):
                many_small_files(place.primary / "deep" / "a" / "b", 6, 1)
            time.sleep(0.05)
        stop.set()
        writer.join()
        swapper.stop.set()
        swapper.join()
        print(f"{swapper.swaps} swaps")
        assert swapper.swaps > 1000
        assert fingerprint(canary) == before
        assert run.process.poll() is None, run.report()
        (place.primary / "afterwards").write_text("x")
        run.wait_for((place.secondary / "afterwards").exists, "it goes on", 90)
        assert run.stop() == 0
    assert fingerprint(canary) == before
