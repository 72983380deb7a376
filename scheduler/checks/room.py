"""Whether there is room on the secondary for what the primary holds."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.private import unescaped
from scheduler.checks.outcome import Outcome, fail, good, size_text, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNT_S = 5.0


class Used(NamedTuple):
    """``complete``: all of it was counted; else it is at least that, and at most ``most`` bytes."""

    bytes: int
    inodes: int
    complete: bool
    most: int


def used_by(path: str, patience_s: float = _COUNT_S) -> Used:
    """What a tree takes on its file system: as statvfs has it for a whole one, else counted for some seconds."""
    found = os.statvfs(path)
    whole = (found.f_blocks - found.f_bfree) * found.f_frsize
    if _is_file_system(path):
        return Used(whole, found.f_files - found.f_ffree, complete=True, most=whole)
    until = time.monotonic() + patience_s
    device = os.stat(path).st_dev
    linked: set[int] = set()
    size = inodes = 0
    directories = [path]
    while directories:
        for entry in _entries(directories.pop()):
            try:
                stat = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.st_dev != device or stat.st_ino in linked:
                continue
            size += stat.st_blocks * 512
            inodes += 1
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.path)
            elif stat.st_nlink > 1:
                linked.add(stat.st_ino)
        if time.monotonic() > until and directories:
            return Used(size, inodes, complete=False, most=max(size, whole))
    return Used(size, inodes, complete=True, most=size)


def _is_file_system(path: str) -> bool:
    """Whether it is the root of a whole file system, and not a directory of one that is mounted here (proc(5), mountinfo)."""
    if not os.path.ismount(path):
        return False
    here = os.fsencode(os.path.realpath(path))
    with open("/proc/self/mountinfo", "rb") as mounts:
        roots = [fields[3] for fields in map(bytes.split, mounts) if unescaped(fields[4]) == here]
    return roots[-1:] == [b"/"]


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            yield from found
    except OSError:
        return  # the crawl will say so


def check_room(primary: str, facts: dict[str, Any], entries: int) -> Outcome:
    """Room there against what is used here. ``entries``: names that are there already."""
    if "free_bytes" not in facts:
        return warn("room", "could not be asked for")
    used, free = used_by(primary), int(facts["free_bytes"])
    least = "" if used.complete else "at least "
    said = f"{size_text(free)} free there, the primary uses {least}{size_text(used.bytes)}"
    inodes = facts.get("free_inodes")
    if entries:
        return good("room", f"{said}, {entries:,} names are there already")
    if free < used.bytes:
        return fail("room", f"{said}: make room, or choose another file system")
    if inodes is not None and inodes < used.inodes:
        return fail(
            "room", f"{inodes:,} inodes free there, the primary uses {least}{used.inodes:,}: make room"
        )
    if free < used.most:
        return warn("room", f"{said}: it was not counted to the end, and may be more")
    return good("room", said)
