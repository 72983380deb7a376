"""Kills a process just before each of the system calls by which it changes something durable, one after the other.

strace delivers the signal when the call is entered, and the kernel then leaves the call out (only without
--seccomp-bpf). Between two calls a process changes nothing that outlives it, so just before a call is also just
after the one before it. Answers on pipes and sockets are among the calls: before an answer is after what it is about.

SEAMARK_POINT=<call>:<n> has a test kill at that point alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.conftest import need

CALLS = (
    "write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg", "sendfile", "copy_file_range",
    "open", "openat", "openat2", "creat", "ftruncate", "truncate", "fallocate", "ioctl",
    "fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync",
    "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "symlink", "symlinkat",
    "mkdir", "mkdirat", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat",
    "utimensat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
)  # fmt: skip
REPOSITORY = Path(__file__).resolve().parents[1]
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)", re.DOTALL)
_MAKES = re.compile(r"O_CREAT|O_TRUNC|O_TMPFILE|__O_TMPFILE")
_CLONES = re.compile(r"FICLONE|BTRFS_IOC_CLONE|FS_IOC_SETFLAGS")


class Point(NamedTuple):
    """The ``number``-th time that ``call`` is made."""

    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.call}:{self.number}"


@contextmanager
def traced(pid: int, log: Path, point: Point | None = None):
    """Have strace look at this process; and kill it at ``point``. It may have ended afterwards."""
    need("strace")
    command = ["strace", "-qq", "-s", "0", "-e", "signal=none", "-o", str(log), "-p", str(pid)]
    command += ["-e", "trace=" + ",".join("?" + call for call in CALLS)]
    if point is not None:
        command += ["-e", f"inject={point.call}:signal=KILL:when={point.number}"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while not _is_traced(pid):
            assert tracer.poll() is None, tracer.stderr.read().decode(errors="replace")
            assert time.monotonic() < until, "strace does not attach"
            time.sleep(0.002)
        yield
    finally:
        tracer.terminate()
        tracer.wait(20)
        tracer.stderr.close()


def _is_traced(pid: int) -> bool:
    return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


def points(log: Path) -> list[Point]:
    """Where a process can be killed that made these calls, in the order in which it made them."""
    made: Counter[str] = Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        call, words = match.groups()
        made[call] += 1
        if call.startswith("open") and not _MAKES.search(words):
            continue
        if call == "ioctl" and not _CLONES.search(words):
            continue
        found.append(Point(call, made[call]))
    assert found, f"no call that changes anything: {log.read_text(errors='replace')[:500]}"
    return found


def some(found: list[Point], most: int | None) -> list[Point]:
    """All of them (None), or ``most`` at equal distances; or the one that SEAMARK_POINT names."""
    if only := os.environ.get("SEAMARK_POINT"):
        call, _, number = only.partition(":")
        return [Point(call, int(number))]
    if most is None or len(found) <= most:
        return found
    return [found[at * (len(found) - 1) // (most - 1)] for at in range(most)]


def kill_at_each(name: str, work, log: Path, most: int | None) -> int:
    """``work(log, point)`` once untouched and then once for each point, of which it says whether it was reached.

    Prints how many were killed; a failure names the point.
    """
    work(log, None)
    found = points(log)
    chosen = some(found, most)
    missed = []
    for point in chosen:
        try:
            if not any(work(log, again) for again in _tries(point, found, log)):
                missed.append(point)
        except BaseException as error:
            error.add_note(f"killed before {point} of {name}; again: SEAMARK_POINT={point}")
            raise
    print(f"{name}: killed at {len(chosen) - len(missed)} of {len(found)} points")
    assert not missed, f"{name}: not reached again: {', '.join(map(str, missed))}"
    return len(chosen)


def _tries(point: Point, found: list[Point], log: Path):
    """The point; and, where it was not reached since fewer files were opened before it, the same by the last run's log."""
    yield point
    rank = [each for each in found if each.call == point.call].index(point) if point in found else 0
    for _ in range(3):
        now = [each for each in points(log) if each.call == point.call]
        if rank < len(now):
            yield now[rank]


def run_killed(script: str, words, log: Path, point: Point | None) -> tuple[bool, list[str]]:
    """A Python program up to its end, traced from the line on which it waits for its standard input.

    Whether it was killed, and what it printed after that line. It says "ready" before it.
    """
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        assert process.stdout.readline() == "ready\n"
        with traced(process.pid, log, point):
            said, _ = process.communicate("go\n", timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), process.returncode
    return process.returncode != 0, said.splitlines()
