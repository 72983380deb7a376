"""Who works on the primary: an own generator of random changes, and programs that people know."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter

_AREAS = [f"area{number}" for number in range(8)]
_NAMES = [f"n{number}" for number in range(24)]
_MOST_BYTES = 60_000
_KEPT_RUNS = 10
_STRESSORS = ["dentry", "rename", "symlink", "link", "utime", "chmod", "dir", "fallocate", "hdd"]


class Work(threading.Thread):
    """``step`` again and again until ``end``. Where a step is one change, ``still`` holds it between two of them."""

    def __init__(self, root, seed, scratch):
        super().__init__(daemon=True)
        self.root, self.scratch, self.seed = root, scratch, seed
        self.draw = random.Random(seed)
        self.done = Counter()
        self.still = threading.Lock()
        self._over = threading.Event()
        self._process = None

    def prepare(self):
        """What has to be there before it begins."""

    def turn(self):
        """Work at another place from now on."""

    def run(self):
        while not self._over.is_set():
            self.step()
            time.sleep(self.draw.uniform(0, 0.02))

    def step(self):
        raise NotImplementedError

    def end(self):
        self._over.set()
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.join(60)
        assert not self.is_alive()

    def call(self, *command, **more):
        """Run a program to its end; it is killed when the work is over."""
        if self._over.is_set():
            return
        self._process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, **more,
        )  # fmt: skip
        if self._over.is_set():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Own(Work):
    """Every kind of change, in a tree that is small, so that changes meet."""

    def prepare(self):
        self.active = _AREAS
        for _ in range(2000):
            self.step()
        self.turn()

    def turn(self):
        # What changed a moment ago is quiet now, and can be compared.
        self.active = self.draw.sample(_AREAS, 3)

    def step(self):
        what = self.draw.choice(_STEPS)
        # What it is about may be missing, of another kind, or empty.
        with self.still, contextlib.suppress(OSError, ValueError, IndexError):
            what(self)
            self.done[what.__name__.strip("_")] += 1

    def _directory(self):
        path = self.root / self.draw.choice(self.active)
        path.mkdir(exist_ok=True)
        while self.draw.random() < 0.5:
            below = sorted(entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
            if not below:
                break
            path = path / self.draw.choice(below)
        return path

    def _new(self):
        return self._directory() / self.draw.choice(_NAMES)

    def _some(self):
        directory = self._directory()
        return directory / self.draw.choice(sorted(os.listdir(directory)))

    def _file(self):
        path = self._some()
        if path.is_symlink() or not path.is_file():
            raise FileNotFoundError
        return path

    def _bytes(self):
        return self.draw.randbytes(int(self.draw.paretovariate(0.5) * 50) % _MOST_BYTES)

    def _create(self):
        self._new().write_bytes(self._bytes())

    def _append(self):
        with open(self._file(), "ab") as file:
            file.write(self._bytes())

    def _overwrite(self):
        with open(self._file(), "r+b") as file:
            file.seek(self.draw.randrange(_MOST_BYTES))
            file.write(self._bytes())

    def _truncate(self):
        os.truncate(self._file(), self.draw.randrange(_MOST_BYTES))

    def _mkdir(self):
        self._new().mkdir()

    def _rename(self):
        os.rename(self._some(), self._new())

    def _rename_over(self):
        os.rename(self._some(), self._some())

    def _rename_area(self):
        if self.draw.random() < 0.1:
            one, other = self.draw.sample(self.active, 2)
            os.rename(self.root / one, self.root / "aside")
            with contextlib.suppress(OSError):
                os.rename(self.root / other, self.root / one)
            os.rename(self.root / "aside", self.root / other)

    def _link(self):
        os.link(self._file(), self._new())

    def _symlink(self):
        os.symlink(self.draw.choice(_NAMES), self._new())

    def _unlink(self):
        self._some().unlink()

    def _remove_tree(self):
        path = self._some()
        if self.draw.random() < 0.2 and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)

    def _attributes(self):
        path = self._some()
        os.chown(path, self.draw.randrange(2000), self.draw.randrange(2000), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(self.draw.choice([0o600, 0o644, 0o755, 0o4711, 0o2770, 0o1777]))
            os.setxattr(
                path, f"user.{self.draw.choice('abc')}", self.draw.randbytes(self.draw.randrange(100))
            )

    def _times(self):
        when = self.draw.randrange(2**30 * 10**9)
        os.utime(self._some(), ns=(when, when), follow_symlinks=False)

    def _map(self):
        with open(self._file(), "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            at = self.draw.randrange(len(memory))
            memory[at : at + 1] = b"m"

    def _hole(self):
        with open(self._new(), "wb") as file:
            file.write(b"begin")
            file.seek(self.draw.randrange(2**22))
            file.write(b"end")

    def _save(self):
        path = self._file()
        aside = path.with_name(".save")
        with open(aside, "wb") as file:
            file.write(self._bytes())
            os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
        os.replace(aside, path)


_STEPS = [
    *[Own._create] * 6, *[Own._append] * 3, *[Own._overwrite] * 3, Own._truncate, *[Own._mkdir] * 2,
    *[Own._rename] * 3, *[Own._rename_over] * 2, Own._rename_area, Own._link, Own._symlink,
    *[Own._unlink] * 2, Own._remove_tree, *[Own._attributes] * 2, Own._times, Own._map, Own._hole,
    *[Own._save] * 3,
]  # fmt: skip


class Git(Work):
    """Commits of a history, checked out at random, in a clone that is all on the primary."""

    commits = 300

    def prepare(self):
        bare = self.scratch / "history.git"
        subprocess.run(["git", "init", "-q", "--bare", bare], check=True)
        subprocess.run(
            ["git", "-C", bare, "fast-import", "--quiet"],
            input=self._history(),
            check=True,
            capture_output=True,
        )
        subprocess.run(["git", "clone", "-q", "-b", "main", bare, self.root / "clone"], check=True)

    def _history(self):
        out, names = [], []
        for number in range(self.commits):
            message = f"commit {number}".encode()
            out.append(b"commit refs/heads/main\ncommitter t <t@example.org> %d +0000\n" % (10**9 + number))
            out.append(b"data %d\n%s\n" % (len(message), message))
            for _ in range(self.draw.randrange(1, 14)):
                name = f"d{self.draw.randrange(12)}/s{self.draw.randrange(4)}/f{self.draw.randrange(12)}"
                names.append(name)
                content = self.draw.randbytes(self.draw.randrange(3000))
                out.append(f"M 100{self.draw.choice([644, 755])} inline {name}\n".encode())
                out.append(b"data %d\n%s\n" % (len(content), content))
            if number % 5 == 4:
                out.append(f"D {self.draw.choice(names).rsplit('/', 1)[0]}\n".encode())
        return b"".join(out)

    def step(self):
        back = self.draw.randrange(self.commits)
        self.call("git", "-C", self.root / "clone", "checkout", "-q", "-f", "--detach", f"main~{back}")
        self.done["checkout"] += 1
        time.sleep(self.draw.uniform(0, 0.5))


class StressNg(Work):
    """Bursts of a few of its file system stressors: without rests nothing is ever quiet."""

    def step(self):
        place = self.root / "stress"
        place.mkdir(exist_ok=True)
        words = [word for name in self.draw.sample(_STRESSORS, 2) for word in (f"--{name}", "1")]
        self.call(
            "stress-ng", "--temp-path", place, *words, "--timeout", "1s", "--hdd-bytes", "4m",
            "--fallocate-bytes", "4m", "--dentries", "500",
        )  # fmt: skip
        self.done["burst"] += 1
        time.sleep(self.draw.uniform(0.3, 1.5))


class FsMark(Work):
    """Directories full of files, written by fs_mark and deleted again some runs later."""

    def step(self):
        number = self.done["run"]
        self.call(
            "fs_mark", "-d", self.root / f"run{number}", "-n", self.draw.randrange(50, 400), "-s",
            self.draw.randrange(20_000), "-D", "4", "-S", self.draw.randrange(3), "-t", "1", "-k",
            cwd=self.scratch,
        )  # fmt: skip
        self.done["run"] += 1
        if number >= _KEPT_RUNS:
            shutil.rmtree(self.root / f"run{number - _KEPT_RUNS}", ignore_errors=True)
        time.sleep(self.draw.uniform(0.1, 0.8))


class Dbench(Work):
    """What a file server's clients do."""

    def step(self):
        place = self.root / "dbench"
        place.mkdir(exist_ok=True)
        self.call("dbench", "-D", place, "-t", "2", "-R", "4", "-c", "/usr/share/dbench/client.txt", "1")
        self.done["run"] += 1
        time.sleep(self.draw.uniform(0.3, 1.0))


WORKERS = {"own": Own, "git": Git, "stress-ng": StressNg, "fs_mark": FsMark, "dbench": Dbench}
