"""What is to change in a large file that keeps its inode (through.py): blocks that came, and where each belongs.

They lie aside in the order in which they came, each behind its offset and length (u64be, u32be); of one offset the last
counts, and one that was cut off never came. The rest of the file stays as it is, and is neither copied nor sent. So what is
written into the file, when all of them are here, fits only what was there when the others were compared.
"""

from __future__ import annotations

import errno
import os
import struct
from hashlib import sha256
from typing import Callable, Dict, List, Tuple

from replication.secondary.crowd import each
from replication.secondary.mounting import drop_pages

_HEAD = struct.Struct(">QI")
_UNSYNCED = 128 << 20


class Changes:
    """``fd``: what lies aside; ``live``: the file that they are for, open for reading. Both are the caller's."""

    def __init__(self, fd: int, live: int, got: int, block: int, says_alive: Callable[[], None]) -> None:
        """Goes on with what is there from an earlier try. ``got``: the look whose content the file has; ``block``: no piece is longer,
        and each begins at a multiple of it.

        Raises OSError.
        """
        self._fd, self._live, self._got, self._block = fd, live, got, block
        drop_pages(live)
        self._seen = _state(live)
        self._at: Dict[int, Tuple[int, int]] = {}  # offset in the file: where it lies, and its length
        self._end = 0
        size = os.fstat(fd).st_size
        while self._end + _HEAD.size <= size:
            says_alive()
            offset, length = _HEAD.unpack(os.pread(fd, _HEAD.size, self._end))
            if offset % block or length > block or self._end + _HEAD.size + length > size:
                break
            self._note(offset, length)
        # Of one that was cut off nothing stays: behind a shorter one in its place its rest would be read as more of them.
        os.ftruncate(fd, self._end)

    def _note(self, offset: int, length: int) -> None:
        self._at[offset] = (self._end + _HEAD.size, length)
        self._end += _HEAD.size + length

    def put(self, offset: int, content: memoryview) -> None:
        """A block that came. Raises OSError."""
        _write(self._fd, memoryview(_HEAD.pack(offset, len(content)) + content), self._end)
        self._note(offset, len(content))

    def digests(self, start: int, stop: int) -> List[str]:
        """Of the blocks of a range, as they came or as they are in the file; empty where neither is so. Raises OSError."""
        offsets = range(start, stop, self._block)
        return each(lambda offset: self._digest(offset, min(self._block, stop - offset)), offsets)

    def _digest(self, offset: int, length: int) -> str:
        at = self._at.get(offset)
        piece = (
            os.pread(self._live, length, offset)
            if at is None
            else os.pread(self._fd, min(length, at[1]), at[0])
        )
        return sha256(piece).hexdigest()[:32] if piece else ""

    def fit(self, target: int, got: int) -> bool:
        """Whether a file is still what the rest was compared with. Raises OSError."""
        return _state(target) == self._seen and got == self._got

    def write_into(self, target: int, size: int, says_alive: Callable[[], None]) -> None:
        """Have the file hold what it is to hold, and be on disk. Raises OSError."""
        unsynced = 0
        for offset, (at, length) in sorted(self._at.items()):
            says_alive()
            piece = os.pread(self._fd, length, at)
            if len(piece) < length:
                raise OSError(errno.EIO, "what came has become shorter")
            _write(target, memoryview(piece), offset)
            unsynced += length
            if unsynced > _UNSYNCED:
                os.fsync(target)  # or the last one would take as long as all before
                unsynced = 0
        os.ftruncate(target, size)
        os.fsync(target)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def _state(fd: int) -> Tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns
