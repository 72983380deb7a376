"""Is everything older than the mark on the secondary? Judged against snapshots of the primary.

A snapshot is taken, and later, when the mark has passed the moment before it, compared with the secondary. Only what
is *quiet* is judged: an object whose inode, and whose every directory above, has the same ctime on the primary now as
in the snapshot, and one from before the snapshot. Whatever changes an object, its name, or where it is found, sets
one of these. Primary and secondary go on changing meanwhile, so what differs is only a mismatch if it was still
quiet after the secondary was read: then the secondary was wrong at a moment when nobody had touched the original.

The primary itself will do for a snapshot, when what is asked is whether all that is older than the mark is there now:
what changes while it is read is younger.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from dataclasses import dataclass, field

_TICK_NS = 50 * 10**6  # kernels stamp with a clock that ticks: 10 ms at most


@dataclass
class Finding:
    """``compared`` objects were quiet; ``mismatches`` are descriptions of those that the secondary had wrong."""

    compared: int = 0
    names: int = 0
    mismatches: list[str] = field(default_factory=list)


class Comparison:
    """One snapshot against the secondary. ``before_ns``: the real time just before it was taken."""

    def __init__(self, snapshot, primary, secondary, before_ns):
        self._then, self._now, self._copy = map(os.fsencode, (snapshot, primary, secondary))
        self._limit_ns = before_ns - _TICK_NS
        self.found = Finding()

    def run(self):
        self._directory(b"")
        return self.found

    # ---- what is quiet

    def _quiet_here(self, path):
        try:
            then, now = os.lstat(self._then + path), os.lstat(self._now + path)
        except OSError:
            return False
        same = (then.st_ino, then.st_ctime_ns, then.st_mode) == (now.st_ino, now.st_ctime_ns, now.st_mode)
        return same and now.st_ctime_ns < self._limit_ns

    def _quiet(self, path):
        """This, and each directory above it up to the root, which nobody can rename."""
        while path:
            if not self._quiet_here(path):
                return False
            path = path.rpartition(b"/")[0]
        return True

    def _same_names(self, path):
        """Nothing came or went in this directory. The mark is written on the root, so its ctime says nothing."""
        if path:
            return self._quiet(path)
        then, now = os.lstat(self._then), os.lstat(self._now)
        return then.st_mtime_ns == now.st_mtime_ns < self._limit_ns

    # ---- comparing

    def _directory(self, path):
        if self._same_names(path):
            self._names(path)
        try:
            names = sorted(os.listdir(self._then + path or b"/"))
        except OSError:
            return
        for name in names:
            below = path + b"/" + name
            if (name == b".seamark" and not path) or not self._quiet_here(below):
                continue
            self._object(below)
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.lstat(self._then + below).st_mode):
                    self._directory(below)

    def _names(self, path):
        with contextlib.suppress(OSError):
            wanted = set(os.listdir(self._then + path)) - {b".seamark"}
            there = set(os.listdir(self._copy + path)) - {b".seamark"}
            if wanted != there and self._same_names(path):
                self._tell(path, f"names missing {sorted(wanted - there)}, too many {sorted(there - wanted)}")
            self.found.names += 1

    def _object(self, path):
        wanted = _seen(self._then + path)
        there = _seen(self._copy + path)
        if not self._quiet(path):
            return
        self.found.compared += 1
        if wanted != there:
            differs = {
                key: (wanted.get(key), there.get(key))
                for key in {*wanted, *there}
                if wanted.get(key) != there.get(key)
            }
            self._tell(path, f"differs: {differs}")

    def _tell(self, path, what):
        self.found.mismatches.append(f"{path!r} at {time.time():.2f}: {what}"[:600])


def _seen(path):
    """All that has to be equal. A directory's times are not: each change of a file in it sets them for a moment."""
    try:
        status = os.lstat(path)
        seen = {"mode": oct(status.st_mode), "owner": (status.st_uid, status.st_gid)}
        if not stat.S_ISDIR(status.st_mode):
            seen |= {"mtime": status.st_mtime_ns, "size": status.st_size}
        if stat.S_ISLNK(status.st_mode):
            seen["target"] = os.readlink(path)
        else:
            seen["xattrs"] = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
                if name.startswith("user.")
            }
        if stat.S_ISREG(status.st_mode):
            seen["content"] = _digest(path)
    except OSError as error:
        return {"error": error.strerror}
    return seen


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
