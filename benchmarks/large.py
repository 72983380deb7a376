#!/usr/bin/env python3
"""One file of 1 GiB: sent for the first time, then with 1 MiB in its middle overwritten; time, and bytes on the wire.

Each is timed until the copy is identical and can be read, and until it is durable: for us when the mark has passed
the change, which needs a syncfs there; for rsync, which does none, when a syncfs after it has returned. The bytes
are counted by a relay in front of the server, in rounds of their own. Rows: initial, overwrite, wire.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from common import (
    RSYNC,
    Lab,
    Report,
    Row,
    Series,
    arguments,
    differences,
    frozen,
    ratio,
    settle,
    wanted,
    when_identical,
)

_MIB = 1 << 20
_DELTA = ("rsync", "-aHAX", "--no-whole-file")
_RELAY = """
import contextlib, socket, sys, threading
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
total, lock = 0, threading.Lock()

def copy(source, target):
    global total
    with contextlib.suppress(OSError):  # either end was killed
        while data := source.recv(1 << 18):
            with lock:
                total += len(data)
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)

def accept():
    while True:
        near, _ = server.accept()
        far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=copy, args=pair, daemon=True).start()

threading.Thread(target=accept, daemon=True).start()
for _ in sys.stdin:
    print(total, flush=True)
"""


class Relay:
    """Passes connections on to a server, and counts the bytes of both directions."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RELAY, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._process.stdout.readline())

    @property
    def bytes(self) -> int:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def write_noise(path: Path, size: int, seed: int) -> None:
    """A file that does not compress; its pages are in the cache and on disk afterwards."""
    draw = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(size // _MIB):
            file.write(draw.randbytes(_MIB))
    os.sync()


def overwrite_middle(path: Path, seed: int) -> None:
    with path.open("r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(random.Random(seed).randbytes(_MIB))


def synced(path: Path) -> float:
    """Seconds until a file system has written what it was given."""
    began = time.monotonic()
    subprocess.run(["sync", "-f", path], check=True)
    return time.monotonic() - began


def when_marked(state: Path, since_ns: int, timeout_s: float = 300) -> float:
    """The moment (monotonic) at which the session's mark had passed a change."""
    (progress,) = state.rglob("progress.sqlite")
    until = time.monotonic() + timeout_s
    with contextlib.closing(sqlite3.connect(f"file:{progress}?mode=ro", uri=True)) as db:
        while db.execute("SELECT stime_ns FROM brick").fetchone()[0] < since_ns:
            assert time.monotonic() < until, f"no mark within {timeout_s} s"
            time.sleep(0.02)
    return time.monotonic()


def timed(lab: Lab, runs: int, size: int) -> list[Row]:
    """Initial and overwritten, in a running session, in turns with rsync."""
    ours, peer = "seamark, a running session", "rsync -aHAX over ssh"
    first, first_peer = Series(ours), Series(peer)
    kept, kept_peer = Series("seamark, until marked"), Series("rsync -aHAX over ssh, then syncfs")
    delta, delta_peer = Series(ours), Series(peer)
    primary, secondary, state = lab.fresh("primary"), lab.fresh("secondary"), lab.fresh("state")
    with lab.seamark(primary, secondary, state) as run:
        run.wait_for(lambda: run.status.get("phase") == "idle", "idle")
        for turn in range(runs):
            source, copy = lab.fresh("tree"), lab.fresh("copy")
            write_noise(source / "large", size, turn)
            with frozen(run):
                first_peer.values.append(lab.rsync(source, copy, *RSYNC))
                kept_peer.values.append(first_peer.values[-1] + synced(copy))
            settle(run)
            here, there = primary / f"t{turn}", secondary / f"t{turn}"
            began = time.monotonic()
            os.rename(source, here)
            moved_ns = os.stat(here).st_ctime_ns
            first.values.append(when_identical(here, there) - began)
            kept.values.append(when_marked(state, moved_ns) - began)
            settle(run)
            began = time.monotonic()
            overwrite_middle(here / "large", turn + 1000)
            wanted_state = os.stat(here / "large").st_mtime_ns
            while os.stat(there / "large").st_mtime_ns != wanted_state:
                time.sleep(0.01)
            delta.values.append(when_identical(here, there) - began)  # its directory's times come after it
            settle(run)
            with frozen(run):
                delta_peer.values.append(lab.rsync(here, copy, *_DELTA))
            for path in (here / "large", copy / "large"):
                path.unlink()
            settle(run)
        run.stop()
    run.close()
    return [
        Row("1 GiB file, initial", ">= 0.9 times rsync", [first, first_peer], ratio(first, first_peer)),
        Row("1 GiB file, initial, until durable", "(time)", [kept, kept_peer], ratio(kept, kept_peer)),
        Row(
            "1 MiB in its middle overwritten",
            ">= 0.9 times rsync",
            [delta, delta_peer],
            ratio(delta, delta_peer),
        ),
    ]


def on_the_wire(lab: Lab, runs: int, size: int) -> Row:
    """Bytes, both directions, that the overwritten MiB costs."""
    ours, peer = Series("seamark", "MiB"), Series("rsync -aHAX over ssh", "MiB")
    relay = Relay(lab.server.port)
    real, lab.server.port = lab.server.port, relay.port
    lab.server.trust()
    primary, secondary = lab.fresh("primary"), lab.fresh("secondary")
    write_noise(primary / "large", size, 1)
    copy = lab.fresh("copy")
    try:
        lab.rsync(primary, copy)
        with lab.seamark(primary, secondary, lab.fresh("state")) as run:
            run.wait_for(lambda: run.status.get("phase") == "idle", "idle", 300)
            for turn in range(runs):
                settle(run)
                before = relay.bytes
                overwrite_middle(primary / "large", turn)
                state = os.stat(primary / "large").st_mtime_ns
                while os.stat(secondary / "large").st_mtime_ns != state:
                    time.sleep(0.02)
                when_identical(primary, secondary)
                settle(run)
                ours.values.append((relay.bytes - before) / _MIB)
                assert not (found := differences(primary, secondary)), found
                with frozen(run):
                    before = relay.bytes
                    lab.rsync(primary, copy, *_DELTA)
                    peer.values.append((relay.bytes - before) / _MIB)
            run.stop()
        run.close()
    finally:
        lab.server.port = real
        relay.close()
    return Row("bytes on the wire, 1 MiB overwritten in the middle of 1 GiB", "<= 3 MiB", [ours, peer])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    options = parser.parse_args()
    report, lab = Report(options.json), Lab(options.base)
    try:
        if wanted(options, "initial") or wanted(options, "overwrite"):
            for row in timed(lab, options.runs, options.size * _MIB):
                report.add(row)
        if wanted(options, "wire"):
            report.add(on_the_wire(lab, min(options.runs, 3), options.size * _MIB))
    finally:
        lab.close()
        report.write()


if __name__ == "__main__":
    main()
