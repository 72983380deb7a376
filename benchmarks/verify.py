#!/usr/bin/env python3
"""Comparing both ends by content: seamark verify of a running session against rsync -nc, and rclone check where it is installed.

Rows: small, large. Processor time is of all processes of the side, the session's and its secondary agents included.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import Lab, Report, Row, Series, arguments, ratio, small_files, wanted

REPOSITORY = Path(__file__).resolve().parents[1]
_TICK = os.sysconf("SC_CLK_TCK")


def _processor(pids: list[int]) -> float:
    """Seconds of user and system time of processes, and of children of theirs that ended."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / _TICK


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _timed(command: list[str], pids: list[int], env: dict[str, str] | None = None) -> tuple[float, float]:
    """Seconds by the clock, and of the processor, of a command and of the processes that work for it."""
    before, began = _processor(pids) + _children(), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    return time.monotonic() - began, _processor(pids) + _children() - before


def compare(lab: Lab, runs: int, primary: Path, what: str, *, ssh: bool) -> Row:
    """Both sides in turns, on a copy that is equal."""
    secondary, state = lab.fresh("secondary"), lab.fresh("state")
    clock, used = Series("seamark verify"), Series("  its processor time")
    sides: dict[str, tuple[Series, Series]] = {}
    with lab.seamark(primary, secondary, state, ssh=ssh) as run:
        run.wait_for(lambda: run.status.get("phase") == "idle", "idle", 300)
        (name,) = [path.name for path in (state / "sessions").iterdir()]
        ours = [sys.executable, "-m", "seamark", "verify", name, "--state-dir", str(state), "--no-progress"]
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        way = ["-e", " ".join(lab.ssh(master=True))] if ssh else []
        far = f"{lab.server.host}:{secondary}/" if ssh else f"{secondary}/"
        peers = {
            "rsync -nc": [
                "rsync",
                "-naHAXSi",
                "--delete",
                "--checksum",
                "--exclude=/.seamark",
                *way,
                f"{primary}/",
                far,
            ]
        }
        if shutil.which("rclone") and not ssh:
            peers["rclone check"] = [
                "rclone",
                "check",
                "--download",
                "--exclude=/.seamark/**",
                str(primary),
                str(secondary),
            ]
        for _ in range(runs):
            for peer, command in peers.items():
                series = sides.setdefault(peer, (Series(peer), Series("  its processor time")))
                for one, value in zip(series, _timed(command, [lab.server.process.pid]), strict=True):
                    one.values.append(value)
            pids = [run.process.pid, *run.children(), lab.server.process.pid]
            for one, value in zip((clock, used), _timed(ours, pids, env), strict=True):
                one.values.append(value)
        run.stop()
    run.close()
    row = Row(
        f"{what}{' over ssh' if ssh else ''}",
        "",
        [clock, used, *(one for pair in sides.values() for one in pair)],
    )
    row.verdict = "; ".join(
        f"{ratio(clock, pair[0])}, processor {ratio(used, pair[1])}" for pair in sides.values()
    )
    return row


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--ssh", action="store_true", help="over ssh on loopback")
    options = parser.parse_args()
    report, lab = Report(options.json), Lab(options.base)
    try:
        if wanted(options, "small"):
            tree = small_files(lab.fresh("primary", make=False), options.files, max(1, options.files // 100))
            report.add(compare(lab, options.runs, tree, f"{options.files} small files", ssh=options.ssh))
        if wanted(options, "large"):
            tree = lab.fresh("primary")
            for number in range(4):
                (tree / f"large{number}").write_bytes(os.urandom(options.mib << 18))
            report.add(compare(lab, options.runs, tree, f"4 files, {options.mib} MiB", ssh=options.ssh))
    finally:
        lab.close()
        report.write()


if __name__ == "__main__":
    main()
