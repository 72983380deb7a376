"""Reading the metadata of objects on the primary, for the secondary to set."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.failures import Failure
from replication.volume.directory import GONE, settled
from replication.volume.handle import open_beneath
from replication.volume.identity import ROOT_GFID

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from replication.volume.directory import DirectoryVolume

_ROWS = 500
GFID, INO, CTIME, XATTRS = 0, 7, 6, 8  # where in a row


class Attributes(NamedTuple):
    """``rows`` for the `metadata` operation, ``bad``: what could not be read, ``gone``: what is not at its path any more.

    A file that is gone from its name has a record of that. One that is gone because a directory above it was renamed has
    none: nothing about it changed, and its attributes have still to be read.
    """

    rows: list[list[Any]]
    bad: list[Failure]
    gone: list[tuple[bytes, bytes]]


def attribute_rows(volume: DirectoryVolume, objects: Iterable[tuple[bytes, bytes]]) -> Iterator[Attributes]:
    """Of objects, which are (gfid, path), at most 500 at a time."""
    rows: list[list[Any]] = []
    bad: list[Failure] = []
    gone: list[tuple[bytes, bytes]] = []
    for gfid, path in objects:
        try:
            row = _row(volume, gfid, path)
            if row is None:
                gone.append((gfid, path))
        except OSError as error:
            if error.errno in GONE:
                gone.append((gfid, path))
            else:
                volume.check_answers(error)
                text = f"cannot read attributes of {os.fsdecode(path)}: {error.strerror}"
                bad.append(
                    Failure(step="metadata", gfid=gfid.hex(), path=os.fsdecode(path), code="io", error=text)
                )
            continue
        if row is not None:
            rows.append(row)
        if len(rows) >= _ROWS:
            yield Attributes(rows, bad, gone)
            rows, bad, gone = [], [], []
    if rows or bad or gone:
        yield Attributes(rows, bad, gone)


def _row(volume: DirectoryVolume, gfid: bytes, path: bytes) -> list[Any] | None:
    directory, name = os.path.split(path)
    dir_fd = open_beneath(volume.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
    try:
        found, stat = volume.identify(dir_fd, name)
        if found != gfid and gfid != ROOT_GFID:
            return None
        stat = volume.believed(dir_fd, name, stat)
        xattrs = volume.xattrs(b"/proc/self/fd/%d/%s" % (dir_fd, name or b"."))
        after = volume.believed(dir_fd, name, volume.identify(dir_fd, name)[1])
        ctime = settled(stat.ctime_ns) if after.ctime_ns == stat.ctime_ns else 0
    finally:
        os.close(dir_fd)
    return [gfid.hex(), stat.mode, stat.uid, stat.gid, stat.mtime_ns, stat.atime_ns, ctime, stat.ino, xattrs]
