#!/usr/bin/env python3
"""20,000 files of 1 to 4 KiB in 200 directories: into a running session, and as a first --once; against rsync -aHAX over ssh.

Rows: moved-in, once.
"""

from __future__ import annotations

import os
import shutil
import time

from common import (
    Lab,
    Report,
    Row,
    Series,
    arguments,
    differences,
    frozen,
    ratio,
    settle,
    small_files,
    wanted,
    when_identical,
)


def moved_in(lab: Lab, runs: int, files: int) -> Row:
    """A tree made beside the primary is renamed into it; the clock runs from then until identical."""
    ours, peer = Series("seamark, a running session"), Series("rsync -aHAX over ssh")
    primary, secondary, state = lab.fresh("primary"), lab.fresh("secondary"), lab.fresh("state")
    with lab.seamark(primary, secondary, state) as run:
        run.wait_for(lambda: run.status.get("phase") == "idle", "idle")
        for turn in range(runs):
            source = small_files(lab.fresh("tree", make=False), files, files // 100, seed=turn)
            with frozen(run):
                copy = lab.fresh("copy")
                peer.values.append(lab.rsync(source, copy))
                shutil.rmtree(copy)
            settle(run)
            here, there = primary / f"tree{turn}", secondary / f"tree{turn}"
            began = time.monotonic()
            os.rename(source, here)
            ours.values.append(when_identical(here, there) - began)
            settle(run)
        assert not differences(primary, secondary)
        run.stop()
    run.close()
    row = Row(f"{files} files of 1-4 KiB moved into a running session", ">= 2 times rsync", [ours, peer])
    row.verdict = ratio(ours, peer)
    return row


def once(lab: Lab, runs: int, files: int) -> Row:
    """The whole of `seamark run --once` with nothing there before: start, copy, make durable, stop."""
    ours, peer = Series("seamark run --once"), Series("rsync -aHAX over ssh")
    source = small_files(lab.fresh("tree", make=False), files, files // 100)
    for _ in range(runs):
        copy = lab.fresh("copy")
        peer.values.append(lab.rsync(source, copy))
        shutil.rmtree(copy)
        secondary, state = lab.fresh("secondary"), lab.fresh("state")
        ours.values.append(lab.once(source, secondary, state))
        assert not (found := differences(source, secondary)), found[:5]
        shutil.rmtree(secondary)
    row = Row(
        f"{files} files of 1-4 KiB as a first --once, start-up included", ">= 2 times rsync", [ours, peer]
    )
    row.verdict = ratio(ours, peer)
    return row


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    options = parser.parse_args()
    report, lab = Report(options.json), Lab(options.base)
    try:
        for name, measure in (("moved-in", moved_in), ("once", once)):
            if wanted(options, name):
                report.add(measure(lab, options.runs, options.files))
    finally:
        lab.close()
        report.write()


if __name__ == "__main__":
    main()
