"""A large file that is being written is waited for: what is sent of it meanwhile is sent in vain, and once more."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.transfer.item import FileItem
    from replication.volume.directory import DirectoryVolume
    from replication.volume.handle import Stat

LARGE = 32 << 20  # bytes, from which on it is waited
_STILL_S = 0.5  # for which nothing is written to it
_STEP_S = 0.1
_MUCH = 0.2  # of a file that is there already: what came since it was looked at
_MOST_S, _BYTES_A_S = 10.0, 100 << 20  # but at most about as long as it takes to send it


def wait_while_written(
    volume: DirectoryVolume, item: FileItem, fd: int, stat: Stat, progress: Callable[[int, int], None]
) -> bool:
    """Whether it was waited for. One that nobody wrote to just now is not, nor one that is written to and hardly grows: a log, an image
    of a disk; whoever writes to that may never rest. Raises OSError.
    """
    if stat.size < LARGE or time.time() - stat.mtime_ns / 1e9 > _STILL_S:
        return False
    if item.how != "new" and stat.size - item.size < stat.size * _MUCH:
        return False
    began = still_since = time.monotonic()
    while True:
        time.sleep(_STEP_S)
        progress(0, 0)
        now, before, stat = time.monotonic(), stat, volume.stat(fd)
        if (stat.size, stat.mtime_ns) != (before.size, before.mtime_ns):
            still_since = now
        if now - still_since > _STILL_S or now - began > min(_MOST_S, _STILL_S + stat.size / _BYTES_A_S):
            return True
