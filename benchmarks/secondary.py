"""What a small file costs on the far side: observations and content through a real agent over pipes.

Usage: python benchmarks/secondary.py DIRECTORY [FILES] [DIRECTORIES]

Twice the same tree: content that travels with the observation, then content that is sent when it was asked for.

DIRECTORY should lie on a file system with a journal and without files that were deleted just now: ext4
without a journal does not reuse inodes for some seconds, and creating files then takes 0.5 ms each.
The frames are encoded before the clock starts, so that what is measured is the agent.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replication.observation import Change, Entry, Inode, Listing
from replication.volume.identity import ROOT_GFID
from tests.secondary.primary import Far

FRAME_FILES = 256
NAMES = 2000
CARRIED_BYTES = 2 << 20  # content after which an observation is sent


def gfid(number: int) -> bytes:
    return blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


def inode(number: int, mode: int, size: int) -> Inode:
    now = 1_700_000_000_123_456_789
    return Inode(gfid(number), mode, os.geteuid(), os.getegid(), 1, number, 0, size, now, now, now)


def cpu(pid: int) -> tuple[float, float]:
    """User and system seconds of a process. Source: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


class Load:
    """A tree to be replicated: observations of at most so many bytes each, and the rows and contents of its files."""

    def __init__(self, first: int, files: int, directories: int, most_bytes: int) -> None:
        """``first``: the number of its first file, so that several trees have no inode in common."""
        self.groups: list[list[Listing]] = []
        self.items: list[list[Any]] = []
        self.blobs: list[bytes] = []
        self.content: list[list[tuple[str, dict[str, str], bytes]]] = []  # of the files of each group
        dirs = [10_000_000 + first + d for d in range(directories)]
        tops = [Entry(b"dir%08d" % d, inode(d, 0o40755, 4096)) for d in dirs]
        self.groups.append([Listing(ROOT_GFID, tops)])
        self.content.append([])
        held = NAMES + 1
        per = files // directories
        for number, directory in enumerate(dirs):
            if held + per > NAMES or sum(len(row[2]) for row in self.content[-1]) > most_bytes:
                self.groups.append([])
                self.content.append([])
                held = 0
            held += per
            found = range(first + number * per, first + number * per + per)
            self.groups[-1].append(Listing(gfid(directory), [self._file(f) for f in found], complete=True))

    def _file(self, number: int) -> Entry:
        size = 1024 + number * 7919 % 3072
        found, content = inode(number, 0o100644, size), os.urandom(size)
        self.items.append(
            [found.gfid.hex(), size, found.mode, found.uid, found.gid, found.mtime_ns, found.atime_ns,
             found.ctime_ns, number, {}]
        )  # fmt: skip
        self.blobs.append(content)
        self.content[-1].append((found.gfid.hex(), {}, content))
        return Entry(b"some-file-%06d.dat" % number, found, None, Change.UNKNOWN)


def main() -> None:
    base = Path(sys.argv[1])
    files = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    directories = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    root = base / "bench-secondary"
    shutil.rmtree(root, ignore_errors=True)
    far = Far(root)
    client, pid = far.client, far.process.pid
    client.begin_crawl("bench")

    def timed(what: str, work) -> None:
        before, start, mine = cpu(pid), time.perf_counter(), time.process_time()
        for future in [f for f in work() if f is not None]:
            future.result()
        wall, after, own = time.perf_counter() - start, cpu(pid), time.process_time() - mine
        user, system = after[0] - before[0], after[1] - before[1]
        print(
            f"{what:34} {wall / files * 1e6:6.1f} µs/file  agent {(user + system) / files * 1e6:5.1f} µs CPU "
            f"(user {user / files * 1e6:.1f}, system {system / files * 1e6:.1f}), this end {own / files * 1e6:.1f}; "
            f"{files / wall:,.0f} files/s"
        )

    carried = Load(0, files, directories, CARRIED_BYTES)
    timed(
        "observe, content goes along",
        lambda: [
            client.submit_observe(g, crawl="bench", limbo_until=1, content=c)
            for g, c in zip(carried.groups, carried.content, strict=True)
        ],
    )
    timed("sync", lambda: [client.submit("sync")])
    load = Load(files, files, directories, sys.maxsize)
    groups, items, blobs = load.groups, load.items, load.blobs
    timed("observe", lambda: [client.submit_observe(g, crawl="bench", limbo_until=1) for g in groups])
    starts = range(0, files, FRAME_FILES)
    timed(
        "data",
        lambda: [client.submit_data(items[s : s + FRAME_FILES], blobs[s : s + FRAME_FILES]) for s in starts],
    )
    timed("sync", lambda: [client.submit("sync")])
    timed(
        "observe again, nothing changed",
        lambda: [client.submit_observe(g, crawl="bench", limbo_until=1) for g in groups],
    )
    empty = [Listing(g.parent, [], complete=True) for group in groups[1:] for g in group]
    timed("observe all of them absent", lambda: [client.submit_observe(empty, crawl="bench", limbo_until=1)])
    timed("purge", lambda: [client.submit("purge", upto=1)])
    print(
        f"peak memory of the agent {Path(f'/proc/{pid}/status').read_text().split('VmHWM:')[1].split()[0]} KiB"
    )
    far.close()


if __name__ == "__main__":
    main()
