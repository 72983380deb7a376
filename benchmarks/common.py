"""What the side-by-side programs share: a real sshd, rsync over ssh, runs of Seamark, trees, and the table.

Every figure is of a whole process by the clock on the wall. The two sides take turns in the same run, each
with an untouched destination, and the medians are compared. A replica only counts when rsync says that it
is one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.sshd import SshServer
from tests.system.harness import SeamarkRun

RSYNC = ("rsync", "-aHAX")


@dataclass
class Series:
    """Repeated measurements of one thing, in the order in which they were made."""

    who: str
    unit: str = "s"
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def percentile(self, share: float) -> float:
        return sorted(self.values)[min(len(self.values) - 1, int(len(self.values) * share))]


@dataclass
class Row:
    """One line of the contract: what was done, by whom, and what is to be reached."""

    work: str
    reach: str
    series: list[Series]
    verdict: str = ""


class Report:
    """Collects rows; prints each as it is ready, and writes all of them as JSON in the end."""

    def __init__(self, json_file: str | None) -> None:
        self._file = json_file
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"\n{row.work}    (to reach: {row.reach})")
        print(f"  {'':34}{'n':>4}{'median':>12}{'min':>12}{'max':>12}")
        for s in row.series:
            figures = "".join(f"{value:>12,.3f}" for value in (s.median, min(s.values), max(s.values)))
            print(f"  {s.who:34}{len(s.values):>4}{figures} {s.unit}")
        if row.verdict:
            print(f"  {row.verdict}")
        sys.stdout.flush()

    def write(self) -> None:
        if self._file is not None:
            Path(self._file).write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")


def ratio(ours: Series, peer: Series) -> str:
    """How many times faster ours is, by the medians, and pair by pair."""
    pairs = [p / o for o, p in zip(ours.values, peer.values, strict=False)]
    return f"{peer.median / ours.median:.2f} times {peer.who} (pairs {min(pairs):.2f} to {max(pairs):.2f})"


def arguments(description: str | None, runs: int = 5) -> argparse.ArgumentParser:
    """The options that all programs have. ``description`` ends with the names of the rows: "Rows: one, two."."""
    rows = (description or "").rpartition("Rows: ")[2].strip().rstrip(".").split(", ")
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=runs, help="turns of each side (default %(default)s)")
    parser.add_argument(
        "--base", help="directory to work in: on the file system to try (default: a new one in TMPDIR)"
    )
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument(
        "--only", action="append", choices=rows, help="only this row; may be given more than once"
    )
    return parser


class Lab:
    """A directory to work in, a server in it, and what both sides need to reach that."""

    def __init__(
        self, base: str | None, server: SshServer | None = None, prefix: tuple[str, ...] = ()
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="seamark-bench-", dir=base))
        self.server = server if server is not None else SshServer(self.base / "sshd")
        self.prefix = prefix  # what takes a command to the primary's side of a link
        self._numbers = iter(range(1, 1 << 30))
        self._masters: list[list[str]] = []

    def close(self) -> None:
        for master in self._masters:
            subprocess.run([*master, "-O", "exit", "x"], check=False, capture_output=True)
        self.server.stop()
        shutil.rmtree(self.base, ignore_errors=True)

    def fresh(self, name: str, *, make: bool = True) -> Path:
        """A path that nobody used before; a directory unless told otherwise."""
        path = self.base / f"{name}{next(self._numbers)}"
        if make:
            path.mkdir()
        return path

    # ---- the peer

    def ssh(self, *, master: bool = False) -> list[str]:
        """An ssh that knows our server and nothing of this user's settings. ``master``: a connection that is open already."""
        s = self.server
        words = [
            "ssh", "-F", "none", "-p", str(s.port), "-i", str(s.identity), "-l", s.user,
            "-o", f"UserKnownHostsFile={s.known_hosts}", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
        ]  # fmt: skip
        if master:
            socket = tempfile.mkdtemp(prefix="sm-") + "/m"
            words += ["-o", f"ControlPath={socket}"]
            subprocess.run(
                [*self.prefix, *words, "-o", "ControlMaster=yes", "-o", "ControlPersist=600", s.host, "true"],
                check=True, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self._masters.append([*self.prefix, *words])
        return words

    def rsync(self, source: Path, target: Path, *options: str, ssh: list[str] | None = None) -> float:
        """Seconds that rsync takes; over ssh, unless ``ssh`` is an empty list."""
        words = self.ssh() if ssh is None else ssh
        way = ["-e", " ".join(words)] if words else []
        where = f"{self.server.host}:" if words else ""
        command = [*self.prefix, *(options or RSYNC), *way, f"{source}/", f"{where}{target}/"]
        os.sync()  # what the other side has left to be written must not be in this one's way
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began

    # ---- ours

    def seamark(
        self,
        primary: Path | str,
        secondary: Path | str,
        state: Path,
        *options: str,
        ssh: bool = True,
        port: int = 0,
    ) -> SeamarkRun:
        """Start a run; over ssh unless told otherwise. Of a Gluster volume as the secondary its address says so."""
        s = self.server
        is_path = not str(secondary).startswith("gluster:")
        target = f"{s.user}@{s.host}:{secondary}" if ssh and is_path else str(secondary)
        way = ["--ssh-port", str(port or s.port), "--identity", str(s.identity), "--accept-new-host-key"]
        return SeamarkRun(
            primary, target, state, *(way if ssh else []), *options,
            prefix=self.prefix, env={"XDG_RUNTIME_DIR": str(self.base)},
        )  # fmt: skip

    def once(self, primary: Path, secondary: Path, state: Path, *options: str, ssh: bool = True) -> float:
        """Seconds of a whole `seamark run --once`, from the command to the end of its process."""
        os.sync()
        began = time.monotonic()
        with self.seamark(primary, secondary, state, "--once", *options, ssh=ssh) as run:
            code = run.wait(900)
            took = time.monotonic() - began
            assert code == 0, run.report()
        run.close()
        return took


def differences(primary: Path, secondary: Path) -> list[str]:
    """What rsync would still do, by sizes, times and attributes (content arrives in one piece)."""
    command = [
        *RSYNC, "-niS", "--delete", "--numeric-ids", "--exclude=/.seamark", "--filter=-x trusted.seamark.*",
        "--filter=-x user.seamark.*",
        f"{primary}/", f"{secondary}/",
    ]  # fmt: skip
    return (
        subprocess.run(command, check=True, capture_output=True).stdout.decode(errors="replace").splitlines()
    )


def when_identical(primary: Path, secondary: Path, timeout_s: float = 300) -> float:
    """The moment (monotonic) at which the secondary was identical.

    Looking must cost next to nothing: directory after directory the names are counted, each no more once it is
    full. Then rsync looks at everything; if it finds anything, the moment is when it no longer does.
    """
    until = time.monotonic() + timeout_s
    for directory, names in _counts(primary):
        there = str(secondary) + directory
        while _count(there) < names:
            if time.monotonic() > until:
                raise AssertionError(f"{there}: not complete within {timeout_s} s")
            time.sleep(0.01)
    complete = time.monotonic()
    while found := differences(primary, secondary):
        if time.monotonic() > until:
            raise AssertionError(f"still different: {found[:10]}")
        complete = time.monotonic()
    return complete


def _counts(root: Path) -> Iterator[tuple[str, int]]:
    for directory, subdirs, files in os.walk(root):
        yield directory[len(str(root)) :], len(files) + len(subdirs) - (".seamark" in subdirs)


def _count(directory: str) -> int:
    try:
        with os.scandir(directory) as entries:
            return sum(1 for entry in entries if entry.name != ".seamark")
    except FileNotFoundError:
        return -1


@contextlib.contextmanager
def frozen(run: SeamarkRun) -> Iterator[None]:
    """While the peer has its turn, a session stands still: its recorder would be woken by the peer's work."""
    processes = [run.process.pid, *run.children()]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def settle(run: SeamarkRun) -> None:
    """Until a session is at rest again, and what it was told about the peer's work is digested."""
    os.sync()
    time.sleep(1.5)
    run.wait_for(lambda: run.status.get("phase") == "idle", "idle", 120)


def small_files(root: Path, files: int, directories: int, seed: int = 1, *, text: bool = False) -> Path:
    """Files of 1 to 4 KiB of noise (or of random words), spread evenly; on disk before it returns."""
    draw = random.Random(seed)
    noise = _words(draw) if text else draw.randbytes(1 << 20)
    per = -(-files // directories)
    for number in range(files):
        directory = f"{root}/d{number // per:05}"
        if number % per == 0:
            os.makedirs(directory)
        at, size = draw.randrange(1 << 19), draw.randint(1024, 4096)
        fd = os.open(f"{directory}/file-{number:07}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
        os.write(fd, noise[at : at + size])
        os.close(fd)
    os.sync()
    return root


def _words(draw: random.Random) -> bytes:
    """A mebibyte of words: it compresses about as well as text does."""
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(2000)]
    return " ".join(draw.choices(words, k=1 << 18)).encode()[: 1 << 20]


def wanted(options: argparse.Namespace, name: str) -> bool:
    return not options.only or name in options.only
