#!/usr/bin/env python3
"""The most memory that any process of a run ever had, at 100,000 and (--big) at 1,000,000 files.

Of each process VmHWM is read (proc(5): the peak of its resident set) a few times a second, on both sides of
the connection: a first --once, then a comparison with nothing to do. Rows: memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from common import Lab, Report, Row, Series, arguments, small_files

_EVERY_S = 0.2


class Peaks:
    """Peak resident set by kind of process, in MiB."""

    def __init__(self) -> None:
        self.by_kind: dict[str, float] = {}

    def look(self, pids: list[int], far: list[int], services: dict[int, str]) -> None:
        for pid in [*pids, *far]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration, IndexError):
                kind = _kind(pid, services, far=pid in far)
                status = Path(f"/proc/{pid}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                self.by_kind[kind] = max(self.by_kind.get(kind, 0.0), int(line.split()[1]) / 1024)


def _kind(pid: int, services: dict[int, str], *, far: bool) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    name = os.path.basename(words[0]).decode(errors="replace")
    if name.startswith("sshd"):
        return "sshd"
    if far:
        return "secondary agent" if name.startswith("python") else f"{name} on the secondary"
    parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    if pid in services:
        return services[pid]
    if parent in services:
        return services[parent] + ", pool process"
    return name if name in ("rsync", "ssh") or "redis" in name or "valkey" in name else "seamark run"


def watched(lab: Lab, peaks: Peaks, primary: Path, secondary: Path, state: Path, *options: str) -> float:
    """One --once to its end; seconds."""
    began = time.monotonic()
    with lab.seamark(primary, secondary, state, "--once", *options) as run:
        while run.process.poll() is None:
            services: dict[int, str] = {}
            with contextlib.suppress(ValueError, OSError, IndexError):
                (path,) = state.glob("sessions/*/pids.json")
                services = {pid: name for name, pid in json.loads(path.read_text()).items()}
            peaks.look([run.process.pid, *run.children()], lab.server.pids(), services)
            time.sleep(_EVERY_S)
        assert run.wait(5) == 0, run.report()
    run.close()
    return time.monotonic() - began


def main() -> None:
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--big", action="store_true", help="1,000,000 files too")
    options = parser.parse_args()
    report, lab = Report(options.json), Lab(options.base)
    counts = [options.files, *([1_000_000] if options.big else [])]
    most: dict[int, dict[str, float]] = {}
    try:
        for files in counts:
            primary = small_files(lab.fresh("primary", make=False), files, files // 100)
            secondary, state, peaks = lab.fresh("secondary"), lab.fresh("state"), Peaks()
            first = watched(lab, peaks, primary, secondary, state)
            again = watched(lab, peaks, primary, secondary, state, "--change-detector", "scan")
            most[files] = peaks.by_kind
            print(f"{files} files: first {first:.1f} s, compared again {again:.1f} s", flush=True)
        kinds = sorted({kind for peaks in most.values() for kind in peaks})
        series = [
            Series(f"{kind}, {files} files", "MiB", [most[files].get(kind, 0.0)])
            for kind in kinds
            for files in counts
        ]
        row = Row(
            "peak memory of each process", "<= 200 MB, and within 20 % of that at 100,000 files", series
        )
        if len(counts) > 1:
            row.verdict = f"the largest process: {max(most[counts[1]].values()) / max(most[counts[0]].values()):.2f} times"
        report.add(row)
    finally:
        lab.close()
        report.write()


if __name__ == "__main__":
    main()
