#!/usr/bin/env python3
"""A running session: 5,000 files created, one file changed, a directory of 20,000 files renamed.

Rows: created, latency, rename.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from common import (
    Lab,
    Report,
    Row,
    Series,
    arguments,
    differences,
    ratio,
    settle,
    small_files,
    wanted,
    when_identical,
)  # fmt: skip

from tests.system.harness import SeamarkRun


def created(lab: Lab, run: SeamarkRun, primary: Path, secondary: Path, runs: int) -> Row:
    """Files are created one by one where they belong; the clock runs from the writer's end until identical."""
    ours, writer = Series("seamark, from the writer's end"), Series("the writer")
    peer = Series("rsync -aHAX over ssh, after it")
    for turn in range(runs):
        settle(run)
        here = primary / f"live{turn}"
        began = time.monotonic()
        small_files(here, 5_000, 50, seed=turn)
        ended = time.monotonic()
        writer.values.append(ended - began)
        ours.values.append(when_identical(here, secondary / f"live{turn}") - ended)
        peer.values.append(lab.rsync(here, lab.fresh("copy")))
    row = Row("5,000 files of 1-4 KiB created live, until identical", "<= 2 s", [ours, writer, peer])
    row.verdict = ratio(ours, peer)
    return row


def latency(run: SeamarkRun, primary: Path, secondary: Path, samples: int) -> Row:
    """One file of 4 KiB is overwritten on a session at rest; until that state is on the secondary."""
    ours = Series("seamark")
    draw = random.Random(5)
    here, there = primary / "changing", secondary / "changing"
    here.write_bytes(draw.randbytes(4096))
    settle(run)
    for _ in range(samples):
        time.sleep(draw.uniform(0.3, 0.8))
        content = draw.randbytes(4096)
        with here.open("r+b") as file:
            file.write(content)
        began = time.monotonic()
        mark = os.stat(here).st_mtime_ns
        while os.stat(there).st_mtime_ns != mark:
            assert time.monotonic() - began < 30, run.report()
            time.sleep(0.002)
        ours.values.append(time.monotonic() - began)
        assert there.read_bytes() == content
    row = Row("one file of 4 KiB changed on an idle session", "median <= 0.5 s, p99 <= 1.5 s", [ours])
    row.verdict = f"p99 {ours.percentile(0.99):.3f} s"
    return row


def rename(run: SeamarkRun, primary: Path, secondary: Path, runs: int) -> Row:
    """A directory of 20,000 files is renamed; no content may be sent."""
    ours, sent = Series("seamark"), Series("content sent", "bytes")
    name = primary / "name0"
    small_files(name, 20_000, 20)
    when_identical(name, secondary / "name0")
    settle(run)
    for turn in range(1, runs + 1):
        before = _bytes_sent(run)
        new = primary / f"name{turn}"
        began = time.monotonic()
        os.rename(name, new)
        ours.values.append(when_identical(new, secondary / new.name) - began)
        assert not (secondary / name.name).exists()
        name = new
        settle(run)
        sent.values.append(float(_bytes_sent(run) - before))
    return Row("a directory of 20,000 files renamed", "<= 1 s, 0 bytes of data", [ours, sent])


def _bytes_sent(run: SeamarkRun) -> int:
    """Bytes of content that data tasks have sent since the run began."""
    redis = run.redis()
    try:
        (key,) = redis.keys("seamark:*counters")
        return int(redis.hget(key, "bytes_sent") or 0)
    finally:
        redis.close()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=100, help="changes of one file")
    options = parser.parse_args()
    report, lab = Report(options.json), Lab(options.base)
    primary, secondary = lab.fresh("primary"), lab.fresh("secondary")
    try:
        with lab.seamark(primary, secondary, lab.fresh("state")) as run:
            run.wait_for(lambda: run.status.get("phase") == "idle", "idle")
            if wanted(options, "created"):
                report.add(created(lab, run, primary, secondary, options.runs))
            if wanted(options, "latency"):
                report.add(latency(run, primary, secondary, options.samples))
            if wanted(options, "rename"):
                report.add(rename(run, primary, secondary, options.runs))
            settle(run)
            assert not (found := differences(primary, secondary)), found[:5]
            run.stop()
        run.close()
    finally:
        lab.close()
        report.write()


if __name__ == "__main__":
    main()
