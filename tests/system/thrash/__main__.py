"""python -m tests.system.thrash --seeds 0-199 --jobs 2: many seeds, a line each, and a summary; ends with 0 or 1."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict

from tests.system.thrash.run import Result, play, replay

_LONGEST_S = 900


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.system.thrash", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one seed, in this process")
    which.add_argument("--seeds", help="FIRST-LAST: a process for each")
    parser.add_argument("--jobs", type=int, default=1, help="so many at the same time")
    parser.add_argument(
        "--seconds", type=float, default=10, help="how long faults go on; part of what a seed means"
    )
    parser.add_argument(
        "--dir", help="where seeds have their directories (else: the directory for temporary files)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the directories of all, not only of those that fail"
    )
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seed is not None:
        result = play(options.seed, options.seconds, options.dir, keep_all=options.keep)
        print(json.dumps(asdict(result)) if options.json else _text(result, options.seconds), flush=True)
        return 1 if result.wrong else 0
    first, _, last = options.seeds.partition("-")
    with ThreadPoolExecutor(options.jobs) as pool:
        seeds = range(int(first), int(last or first) + 1)
        results = []
        for playing in as_completed([pool.submit(_apart, seed, options) for seed in seeds]):
            result = playing.result()
            print(_text(result, options.seconds), flush=True)
            results.append(result)
    print(_summary(results), flush=True)
    return 1 if any(result.wrong for result in results) else 0


def _apart(seed, options):
    words = ["--seed", str(seed), "--seconds", str(options.seconds), "--json"]
    words += ["--dir", options.dir] if options.dir else []
    words += ["--keep"] if options.keep else []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.system.thrash", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it cleans up
            process.wait()
            return Result(seed, "?", wrong=[f"no result within {_LONGEST_S} s"])
    try:
        return Result(**json.loads(out.splitlines()[-1]))
    except (ValueError, IndexError):
        return Result(seed, "?", wrong=[f"it ended with {process.returncode}: {err[-2000:]}"])


def _text(result, seconds):
    lines = [result.line()]
    lines += [f"    {what}" for what in result.wrong]
    if result.wrong:
        lines += [f"    kept: {result.kept}", f"    again: {replay(result.seed, seconds)}"]
    return "\n".join(lines)


def _summary(results):
    played = [result for result in results if not result.refused]
    faults, missed = Counter(), Counter()
    for result in played:
        faults.update(result.faults)
        missed.update(result.missed)
    same = max((result.same_after_s for result in played), default=0)
    healthy = max((result.healthy_after_s for result in played), default=0)
    failed = sum(bool(result.wrong) for result in played)
    looks, checked, compared, late = (
        sum(getattr(result, what) for result in played)
        for what in ("looks", "snapshots", "compared", "unanswered")
    )
    lines = [
        f"{len(played)} seeds played, {len(results) - len(played)} refused, {failed} failed",
        f"{sum(faults.values())} faults: "
        + ", ".join(f"{count} {name}" for name, count in faults.most_common()),
        "not possible when due: " + (", ".join(f"{n} {name}" for name, n in missed.most_common()) or "none"),
        f"{looks} marks and {checked} snapshots checked, {compared} objects compared, {late} not reached in time",
        f"at the latest identical after {same:.1f} s, healthy after {healthy:.1f} s",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
