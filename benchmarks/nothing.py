#!/usr/bin/env python3
"""Nothing to do: a restart after a clean stop, and a comparison of whole trees, against rsync -an.

Rows: restart, compare.
"""

from __future__ import annotations

import time
from pathlib import Path

from common import Lab, Report, Row, Series, arguments, differences, ratio, small_files, wanted


def restart(lab: Lab, runs: int, files: int) -> Row:
    """A session that was stopped in order is started again; until it says that nothing is to be done."""
    series = []
    for count in (1_000, files):
        primary, secondary, state = _replica(lab, count)
        _until_idle(lab, primary, secondary, state)
        ours = Series(f"seamark, {count} files")
        ours.values = [_until_idle(lab, primary, secondary, state) for _ in range(runs)]
        series.append(ours)
    row = Row(
        f"restart after a clean stop, {files} files, no changes",
        "<= 3 s, whatever the number of files",
        series,
    )
    row.verdict = f"{series[1].median / series[0].median:.2f} times what it takes with 1,000 files"
    return row


def _until_idle(lab: Lab, primary: Path, secondary: Path, state: Path) -> float:
    began = time.monotonic()
    with lab.seamark(primary, secondary, state) as run:
        run.wait_for(lambda: run.status.get("phase") == "idle", "idle", 120)
        took = time.monotonic() - began
        assert run.stop() == 0
    run.close()
    return took


def _replica(lab: Lab, files: int, *, ssh: bool = True) -> tuple[Path, Path, Path]:
    primary = small_files(lab.fresh("primary", make=False), files, max(1, files // 100))
    secondary, state = lab.fresh("secondary"), lab.fresh("state")
    lab.once(primary, secondary, state, ssh=ssh)
    assert not (found := differences(primary, secondary)), found[:5]
    return primary, secondary, state


def compare(
    lab: Lab, runs: int, files: int, *, ssh: bool = False, reach: str = "as fast as rsync -an"
) -> Row:
    """A hybrid crawl of a tree that is the same already: the crawl itself, and the whole process with its start."""
    primary, secondary, state = _replica(lab, files, ssh=ssh)
    crawl, whole = Series("seamark, crawls of a running session"), Series("seamark run --once, whole process")
    peer = Series("rsync -an" + (" over ssh" if ssh else ""))
    master = lab.ssh(master=True) if ssh else []
    for _ in range(runs):
        peer.values.append(lab.rsync(primary, secondary, "rsync", "-an", ssh=master))
        began = time.monotonic()
        with lab.seamark(primary, secondary, state, "--once", "--change-detector", "scan", ssh=ssh) as run:
            assert run.wait(120) == 0, run.report()
            whole.values.append(time.monotonic() - began)
            assert run.status["files_done"] == 0, run.report()
        run.close()
    with lab.seamark(primary, secondary, state, "--change-detector", "scan", ssh=ssh) as run:
        run.wait_for(lambda: len(_crawls(run.messages)) > runs, "crawls", 300)
        crawl.values = _crawls(run.messages)[1:]  # the first one waits for connections
        run.stop()
    run.close()
    row = Row(f"hybrid crawl with nothing to do, {files} files", reach, [crawl, whole, peer])
    row.verdict = f"the crawl {ratio(crawl, peer)}; whole {ratio(whole, peer)}"
    return row


def _crawls(messages: list[dict]) -> list[float]:
    """Seconds from the beginning of each crawl, as logged, until the session says that it is idle."""
    took, began = [], None
    for message in list(messages):
        if "hybrid crawl begins" in message.get("message", ""):
            began = message["time"]
        elif began is not None and message.get("phase") == "idle" and message["time"] > began:
            took.append(message["time"] - began)
            began = None
    return took


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    report, lab = Report(options.json), Lab(options.base)
    try:
        if wanted(options, "restart"):
            report.add(restart(lab, options.runs, options.files))
        if wanted(options, "compare"):
            report.add(compare(lab, options.runs, options.files))
    finally:
        lab.close()
        report.write()


if __name__ == "__main__":
    main()
