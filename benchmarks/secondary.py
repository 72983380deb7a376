"""What a small file costs on the far side: observations and content through a real agent over pipes.

Usage: python benchmarks/secondary.py DIRECTORY [FILES] [DIRECTORIES]

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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replication.observation import Change, Entry, Inode, Listing
from replication.volume.identity import ROOT_GFID
from tests.secondary.primary import Far

FRAME_FILES = 256
NAMES = 2000


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


def main() -> None:
    base = Path(sys.argv[1])
    files = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    directories = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    root = base / "bench-secondary"
    shutil.rmtree(root, ignore_errors=True)
    per = files // directories
    listings, items, blobs = [], [], []
    listings.append(
        Listing(
            ROOT_GFID,
            [Entry(b"dir%05d" % d, inode(10_000_000 + d, 0o40755, 4096)) for d in range(directories)],
        )
    )
    for d in range(directories):
        entries = []
        for i in range(per):
            number = d * per + i
            size = 1024 + number * 7919 % 3072
            found = inode(number, 0o100644, size)
            entries.append(Entry(b"some-file-%06d.dat" % number, found, None, Change.UNKNOWN))
            items.append(
                [found.gfid.hex(), size, found.mode, found.uid, found.gid, found.mtime_ns, found.atime_ns,
                 found.ctime_ns, number, {}]
            )  # fmt: skip
            blobs.append(os.urandom(size))
        listings.append(Listing(gfid(10_000_000 + d), entries, complete=True))
    far = Far(root)
    client, pid = far.client, far.process.pid
    client.begin_crawl("bench")
    groups: list[list[Listing]] = [[]]
    held = 0
    for listing in listings:
        if held + len(listing.entries) > NAMES:
            groups.append([])
            held = 0
        groups[-1].append(listing)
        held += len(listing.entries)

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
    empty = [Listing(gfid(10_000_000 + d), [], complete=True) for d in range(directories)]
    timed("observe all of them absent", lambda: [client.submit_observe(empty, crawl="bench", limbo_until=1)])
    timed("purge", lambda: [client.submit("purge", upto=1)])
    print(
        f"peak memory of the agent {Path(f'/proc/{pid}/status').read_text().split('VmHWM:')[1].split()[0]} KiB"
    )
    far.close()


if __name__ == "__main__":
    main()
