"""What a data task is asked to send, and what became of it."""

from __future__ import annotations

import errno
import os
import zlib
from json import dumps, loads
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from replication.volume.directory import DirectoryVolume

How = Literal["new", "data", "compare", "metadata"]


class FileItem(NamedTuple):
    """One regular file whose content is wanted on the secondary.

    ``path`` (relative to the volume root) is a hint of where it was; the gfid decides. ``how``:
    "new" (nothing there), "data" (another content there), "compare" (perhaps the same content); "metadata": its content came from another
    host, and nothing else of it. ino, ctime_ns, size (bytes) and nlink are as observed; ``ticket`` is the number of that look.
    """

    gfid: bytes
    path: bytes
    how: How
    ino: int
    ctime_ns: int
    size: int
    nlink: int
    ticket: int = 0

    @property
    def observed(self) -> tuple[int, int, int]:
        """Inode number, ctime (ns) and size (bytes) of the state that was observed."""
        return self.ino, self.ctime_ns, self.size


class ItemResult(NamedTuple):
    """``status``: "ok", "changed" (sent, but it changed meanwhile: a later record or scan sees it),
    "vanished" (not there any more under that gfid), "error" (``code`` and ``message`` say which).
    """

    gfid: bytes
    status: Literal["ok", "changed", "vanished", "error"]
    code: str = ""
    message: str = ""
    bytes_sent: int = 0
    ctime_ns: int = 0  # of what was sent, as it was read; 0: not known
    xattrs: dict[str, str] | None = None  # the same


def unreadable(volume: DirectoryVolume, item: FileItem, error: OSError) -> ItemResult:
    """What becomes of a file that cannot be read. Raises VolumeAway where it is the whole volume that is away."""
    volume.check_answers(error)
    code = "permission" if error.errno in (errno.EACCES, errno.EPERM) else "io"
    return ItemResult(item.gfid, "error", code, f"cannot read {os.fsdecode(item.path)}: {error.strerror}")


def encode_items(items: list[FileItem]) -> bytes:
    """Items as compressed JSON, each directory named once."""
    directories: dict[bytes, int] = {}
    rows = []
    for item in items:
        directory, name = os.path.split(item.path)
        index = directories.setdefault(directory, len(directories))
        rows.append(
            [item.gfid.hex(), index, os.fsdecode(name), item.how, item.ino, item.ctime_ns, item.size, item.nlink,
             item.ticket]
        )  # fmt: skip
    return zlib.compress(dumps([[os.fsdecode(d) for d in directories], rows]).encode(), 1)


def decode_items(packed: bytes) -> list[FileItem]:
    """What encode_items wrote. Raises ValueError or zlib.error on anything else."""
    directories, rows = loads(zlib.decompress(packed))
    where = [os.fsencode(d) for d in directories]
    return [
        FileItem(bytes.fromhex(g), os.path.join(where[d], os.fsencode(n)), how, *rest)
        for g, d, n, how, *rest in rows
    ]
