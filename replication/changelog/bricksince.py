"""What of a brick changed since a time, by the ctime of the brick's own inodes: a scan in small steps.

Every object of a brick has a handle, `.glusterfs/aa/bb/<gfid>`: a hard link, or, to a directory, a symlink.
"""

from __future__ import annotations

import contextlib
import os
import stat as st
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import msgspec

from replication.session_file import replace_file

_STEP_S = 0.03
_TIMES = "trusted.glusterfs.mdata"
_CTIME_AT = 9  # after a version and flags, big-endian: seconds, nanoseconds
# What clients see is the time at which they asked; a brick's is the one at which it was done, with what it notes of it.
_EXPLAINED_NS = 1_000_000_000
_MARGIN_NS = 2_000_000_000  # clocks tick, and a segment's end is a little after what it holds


class Wanted(msgspec.Struct, frozen=True):
    """``since_ns``: by the brick's clock. ``unexplained``: only what changed otherwise than clients can see."""

    since_ns: int
    unexplained: bool


class SinceScan:
    """Durable while it is not at its end: ``kept`` holds what is wanted then. ``fd`` is readable as long as there is more to do."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._searched = kept.with_name("bricks.searched")  # when the last search that came to its end began
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._found: Iterator[bytes] | None = None
        self._wanted: Wanted | None = None
        self._began_ns = time.time_ns()
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self._start(msgspec.json.decode(kept.read_bytes(), type=Wanted))

    @property
    def pending(self) -> bool:
        return self._wanted is not None

    def begin(self, since_ns: int | None) -> None:
        """Look for what changed since then; None: for what no record tells of, since the last search. Raises SeamarkError.

        One that is under way begins again, and is for what was wanted of it, too.
        """
        wanted = Wanted(since_ns, False) if since_ns is not None else Wanted(self._last_ns(), True)
        if self._wanted is not None:
            wanted = Wanted(
                min(wanted.since_ns, self._wanted.since_ns), wanted.unexplained and self._wanted.unexplained
            )
        replace_file(self._kept, msgspec.json.encode(wanted).decode())
        self._start(wanted)

    def _last_ns(self) -> int:
        try:
            return int(self._searched.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return self._began_ns

    def _start(self, wanted: Wanted) -> None:
        if self._wanted is None:
            os.eventfd_write(self.fd, 1)
        self._wanted, self._found, self._began_ns = wanted, None, time.time_ns()

    def some(self, bricks: list[str]) -> list[bytes]:
        """The next gfids, found in a few hundredths of a second. Raises SeamarkError."""
        if self._wanted is None:
            return []
        if self._found is None:
            self._found = _changed(bricks, self._wanted)
        until = time.monotonic() + _STEP_S
        some = []
        for gfid in self._found:
            if gfid:
                some.append(gfid)
            if time.monotonic() > until:
                return some
        replace_file(self._searched, str(self._began_ns))
        self._kept.unlink(missing_ok=True)
        self._wanted = self._found = None
        os.eventfd_read(self.fd)
        return some

    def close(self) -> None:
        os.close(self.fd)


def _changed(bricks: list[str], wanted: Wanted) -> Iterator[bytes]:
    """gfids; empty ones between them, so that whoever waits can look at the time."""
    since_ns = wanted.since_ns - _MARGIN_NS
    for brick in bricks:
        for number in range(1 << 16):
            folder = os.path.join(brick, ".glusterfs", f"{number >> 8:02x}", f"{number & 255:02x}")
            yield b""
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    handle = os.path.join(folder, name)
                    ctime = ctime_of(handle)
                    is_wanted = ctime is not None and ctime >= since_ns
                    if is_wanted and wanted.unexplained:
                        is_wanted = abs(seen_ctime_of(handle) - (ctime or 0)) > _EXPLAINED_NS
                    with contextlib.suppress(ValueError):
                        yield UUID(name).bytes if is_wanted else b""


def seen_ctime_of(handle: str) -> int:
    """The ctime that clients see of an object; 0 where the volume keeps none of its own."""
    try:
        kept = os.getxattr(handle, _TIMES)
        seconds, nanoseconds = struct.unpack_from(">QQ", kept, _CTIME_AT)
    except (OSError, struct.error):
        return 0
    return int(seconds) * 10**9 + int(nanoseconds)


def handle_of(brick: str, name: str) -> str:
    """The handle of an object; ``name``: its gfid as text."""
    return os.path.join(brick, ".glusterfs", name[:2], name[2:4], name)


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
