#!/usr/bin/env python3
"""Over a long link (100 ms round trip, 200 Mbit/s): 5,000 small files, and a comparison with nothing to do.

The link is emulated, see tests/longlink.py: --emulator or SEAMARK_WAN names the script. Needs root. Rows: noise, text, compare.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from common import (
    Lab,
    Report,
    Row,
    Series,
    arguments,
    frozen,
    ratio,
    settle,
    small_files,
    wanted,
    when_identical,
)  # fmt: skip
from nothing import compare

from tests.longlink import FarServer, LongLink, emulator

DELAY_MS, RATE_MBIT, QUEUE_KB = 50, 200, 2500


def small(lab: Lab, runs: int, files: int, *, text: bool) -> Row:
    """Files moved into a running session, against rsync on a connection that is open already."""
    ours, peer = Series("seamark, a running session"), Series("rsync -aHAX, ControlMaster")
    primary, secondary, state = lab.fresh("primary"), lab.fresh("secondary"), lab.fresh("state")
    master = lab.ssh(master=True)
    with lab.seamark(primary, secondary, state) as run:
        run.wait_for(lambda: run.status.get("phase") == "idle", "idle")
        for turn in range(runs):
            source = small_files(lab.fresh("tree", make=False), files, files // 100, seed=turn, text=text)
            with frozen(run):
                copy = lab.fresh("copy")
                peer.values.append(lab.rsync(source, copy, ssh=master))
                shutil.rmtree(copy)
            settle(run)
            here, there = primary / f"tree{turn}", secondary / f"tree{turn}"
            began = time.monotonic()
            os.rename(source, here)
            ours.values.append(when_identical(here, there) - began)
            settle(run)
        run.stop()
    run.close()
    row = Row(
        f"{files} files of 1-4 KiB of {'text' if text else 'noise'} over the long link",
        ">= 3 times rsync with ControlMaster",
        [ours, peer],
    )
    row.verdict = ratio(ours, peer)
    return row


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--emulator", type=Path, default=emulator(), help="the script (or SEAMARK_WAN)")
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--compare-files", type=int, default=100_000)
    options = parser.parse_args()
    if not options.emulator:
        parser.error("name the emulator of the link: --emulator FILE or SEAMARK_WAN")
    report = Report(options.json)
    directory = Path(options.base or "/tmp", f"seamark-link-{os.getpid()}")
    link = LongLink(options.emulator.absolute(), directory / "wan", DELAY_MS, RATE_MBIT, QUEUE_KB)
    try:
        place = Lab(options.base, FarServer(link, directory / "sshd"), link.prefix)
        try:
            for name in ("noise", "text"):
                if wanted(options, name):
                    report.add(small(place, options.runs, options.files, text=name == "text"))
            if wanted(options, "compare"):
                report.add(
                    compare(
                        place, options.runs, options.compare_files, ssh=True, reach=">= 10 times rsync -an"
                    )
                )
        finally:
            place.close()
    finally:
        link.down()
        shutil.rmtree(directory, ignore_errors=True)
        report.write()


if __name__ == "__main__":
    main()
