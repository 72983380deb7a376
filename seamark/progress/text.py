"""Numbers as people read them."""

from __future__ import annotations

import math
import time

from replication.errors import ExitCode
from scheduler.snapshot import Crawl, Phase, ProgressSnapshot

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
CRAWLS = {
    Crawl.NONE: "no crawl",
    Crawl.HYBRID: "hybrid crawl",
    Crawl.HISTORY: "history crawl",
    Crawl.CHANGELOG: "changelog crawl",
}


def size(count: float) -> str:
    """Bytes, in the largest unit that keeps a figure before the point."""
    value = float(max(count, 0))
    for unit in _UNITS[:-1]:
        if value < 1023.95:  # would be printed as 1024.0
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def number(count: int) -> str:
    return f"{count:,}"


def percent(snapshot: ProgressSnapshot) -> str:
    """Whole percents, rounded down; 100 only when the run is finished. Empty when not known."""
    fraction = snapshot.fraction()
    if fraction is None:
        return ""
    whole = 100 if snapshot.finished else min(math.floor(fraction * 100), 99)
    return f"{whole} %"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``12 s``, ``3:04``, ``1:02:03``, ``3 d 04:05``; a dash when not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours == 0:
        return f"{minute}:{second:02}"
    if hours < 24:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{hours // 24} d {hours % 24:02}:{minute:02}"


def moment(epoch: float | None) -> str:
    """Local date and time; "none yet" for a mark that was never set."""
    if epoch is None:
        return "none yet"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def shown(value: str) -> str:
    """Text that any terminal can take: no control characters, and no stray bytes of names."""
    clean = value.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clean)


def log_line(line: str, level: str, created: float, work: str = "") -> str:
    line = f"{work}: {line}" if work else line
    clock = time.strftime("%H:%M:%S", time.localtime(created))
    return f"{clock} {line}" if level == "INFO" else f"{clock} {level.lower()}: {line}"


def status_line(snapshot: ProgressSnapshot) -> str:
    """A snapshot in one line, for files and pipes."""
    parts = [f"{CRAWLS[snapshot.crawl]}, {snapshot.phase}", f"scanned {number(snapshot.scanned)}"]
    parts.append(f"entries {number(snapshot.entries_done)}")
    parts.append(f"files {number(snapshot.files_done)}/{number(snapshot.files_total)}")
    parts.append(f"{size(snapshot.bytes_done)}/{size(snapshot.bytes_total)}")
    if share := percent(snapshot):
        parts.append(share)
    parts.append(f"{size(snapshot.rate_bytes_s)}/s, {snapshot.files_s:,.0f} files/s")
    parts.append(f"ETA {duration(snapshot.eta_s)}")
    parts.append(f"lag {duration(snapshot.lag_s)}")
    parts.append(f"failures {number(snapshot.failures)}")
    if snapshot.state:
        parts.append(snapshot.state)
    return ", ".join(parts)


def summary(snapshot: ProgressSnapshot, exit_code: int, seconds: float) -> str:
    """The last line of a run."""
    if snapshot.phase is Phase.FINISHED and exit_code == ExitCode.OK:
        head = "100 %, finished"
    elif exit_code == ExitCode.PARTIAL:
        head = "finished, but for some items"
    else:
        head = "stopped"
    return (
        f"{head}: scanned {number(snapshot.scanned)}, entries {number(snapshot.entries_done)}, "
        f"files {number(snapshot.files_done)}, {size(snapshot.bytes_done)}, "
        f"failures {number(snapshot.failures)}, in {duration(seconds)}"
    )


def recorded(names: int, since: float, *, at_least: bool) -> str:
    """How much was recorded, in words."""
    least = "at least " if at_least else ""
    return f"{least}{number(names)} names were changed since {moment(since)}"
