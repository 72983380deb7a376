"""What of a brick changed since a time, by the ctime of the brick's own inodes: a scan in small steps.

Every object of a brick has a handle, `.glusterfs/aa/bb/<gfid>`: a hard link, or, to a directory, a symlink.
"""

from __future__ import annotations

import contextlib
import os
import stat as st
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from replication.session_file import replace_file

_STEP_S = 0.03
_MARGIN_NS = 2_000_000_000  # clocks tick, and a segment's end is a little after what it holds


class SinceScan:
    """Durable while it is not at its end: ``kept`` holds the time then. ``fd`` is readable as long as there is more to do."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._found: Iterator[bytes] | None = None
        self._since_ns = 0
        self.pending = False
        with contextlib.suppress(OSError, ValueError):
            self._start(int(kept.read_text(encoding="ascii")))

    def begin(self, since_ns: int) -> None:
        """Look for what changed since then, and if one is under way since that, if it is earlier. Raises SeamarkError."""
        if self.pending:
            since_ns = min(since_ns, self._since_ns)
        replace_file(self._kept, str(since_ns))
        self._start(since_ns)

    def _start(self, since_ns: int) -> None:
        self._since_ns, self._found = since_ns, None
        if not self.pending:
            os.eventfd_write(self.fd, 1)
        self.pending = True

    def some(self, bricks: list[str]) -> list[bytes]:
        """The next gfids, found in a few hundredths of a second."""
        if not self.pending:
            return []
        if self._found is None:
            self._found = _changed(bricks, self._since_ns - _MARGIN_NS)
        until = time.monotonic() + _STEP_S
        some = []
        for gfid in self._found:
            if gfid:
                some.append(gfid)
            if time.monotonic() > until:
                return some
        self.pending, self._found = False, None
        os.eventfd_read(self.fd)
        self._kept.unlink(missing_ok=True)
        return some

    def close(self) -> None:
        os.close(self.fd)


def _changed(bricks: list[str], since_ns: int) -> Iterator[bytes]:
    """gfids; empty ones between them, so that whoever waits can look at the time."""
    for brick in bricks:
        for number in range(1 << 16):
            folder = os.path.join(brick, ".glusterfs", f"{number >> 8:02x}", f"{number & 255:02x}")
            yield b""
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    ctime = ctime_of(os.path.join(folder, name))
                    with contextlib.suppress(ValueError):
                        yield UUID(name).bytes if ctime is not None and ctime >= since_ns else b""


def ctime_of(handle: str) -> int | None:
    """When the brick's inode of an object changed; None: it is not there."""
    try:
        found = os.lstat(handle)
    except OSError:
        return None
    if st.S_ISLNK(found.st_mode):
        # A directory's; or a symlink of somebody's, that may lead anywhere, or nowhere.
        with contextlib.suppress(OSError):
            return max(found.st_ctime_ns, os.stat(handle).st_ctime_ns)
    return found.st_ctime_ns
