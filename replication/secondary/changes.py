"""What is to change in a large file that keeps its inode (through.py): blocks that came, and where each belongs.

They lie aside, each in a slot of its own behind its offset and length (u64be, u32be): a slot has room for a whole block, and
what comes again of a block takes the place of what came before. One that was cut off never came; one that was overwritten
halfway is like any other compared before it is believed. The rest of the file stays as it is, and is neither copied nor sent. So what
is written into the file, when all of them are here, fits only what was there when the others were compared.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from hashlib import sha256
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from replication.secondary.crowd import each
from replication.secondary.mounting import drop_pages

_HEAD = struct.Struct(">QI")
_UNSYNCED = 128 << 20
_PAGE = 1024  # blocks


class Changes:
    """``fd``: what lies aside; ``live``: the file that they are for, open for reading. Both are the caller's.

    Memory: 4 bytes for each block, of stretches of 1024 blocks in which there are some.
    """

    def __init__(self, fd: int, live: int, got: int, block: int, says_alive: Callable[[], None]) -> None:
        """Goes on with what is there from an earlier try. ``got``: the look whose content the file has; ``block``: no piece is longer,
        and each begins at a multiple of it.

        Raises OSError.
        """
        self._fd, self._live, self._got, self._block = fd, live, got, block
        drop_pages(live)
        self._seen = _state(live)
        self._slot_size = _HEAD.size + block
        self._slots: Dict[int, array[int]] = {}  # of _PAGE blocks each: the number of its slot, from 1 on
        self._count = 0
        size = os.fstat(fd).st_size
        while self._count * self._slot_size + _HEAD.size <= size:
            says_alive()
            offset, length = self._head(self._count)
            if offset % block or length > block or self._content_at(self._count) + length > size:
                break
            self._note(offset)
        os.ftruncate(fd, self._count * self._slot_size)

    def _content_at(self, slot: int) -> int:
        return slot * self._slot_size + _HEAD.size

    def _head(self, slot: int) -> Tuple[int, int]:
        """The offset and the length that a slot says."""
        offset, length = _HEAD.unpack(os.pread(self._fd, _HEAD.size, slot * self._slot_size))
        return offset, length

    def _slot(self, offset: int) -> Optional[int]:
        page, at = divmod(offset // self._block, _PAGE)
        known = self._slots.get(page)
        return known[at] - 1 if known is not None and known[at] else None

    def _note(self, offset: int) -> None:
        """The block of this offset is in the next slot."""
        page, at = divmod(offset // self._block, _PAGE)
        self._count += 1
        self._slots.setdefault(page, array("I", bytes(4 * _PAGE)))[at] = self._count

    def _taken(self) -> Iterator[int]:
        """Slots, in the order of their blocks."""
        for page in sorted(self._slots):
            yield from (number - 1 for number in self._slots[page] if number)

    def put(self, offset: int, content: memoryview) -> None:
        """A block that came. Raises OSError."""
        slot = self._slot(offset)
        at = (self._count if slot is None else slot) * self._slot_size
        _write(self._fd, memoryview(_HEAD.pack(offset, len(content)) + content), at)
        if slot is None:
            self._note(offset)

    def digests(self, start: int, stop: int) -> List[str]:
        """Of the blocks of a range, as they came or as they are in the file; empty where neither is so. Raises OSError."""
        offsets = range(start, stop, self._block)
        return each(lambda offset: self._digest(offset, min(self._block, stop - offset)), offsets)

    def _digest(self, offset: int, length: int) -> str:
        slot = self._slot(offset)
        piece = (
            os.pread(self._live, length, offset)
            if slot is None
            else os.pread(self._fd, min(length, self._head(slot)[1]), self._content_at(slot))
        )
        return sha256(piece).hexdigest()[:32] if piece else ""

    def fit(self, target: int, got: int) -> bool:
        """Whether a file is still what the rest was compared with. Raises OSError."""
        return _state(target) == self._seen and got == self._got

    def write_into(self, target: int, size: int, says_alive: Callable[[], None]) -> None:
        """Have the file hold what it is to hold, and be on disk. Raises OSError."""
        unsynced = 0
        for slot in self._taken():
            says_alive()
            there = os.pread(self._fd, self._slot_size, slot * self._slot_size)
            offset, length = (
                _HEAD.unpack(there[: _HEAD.size]) if len(there) >= _HEAD.size else (0, self._block)
            )
            piece = there[_HEAD.size : _HEAD.size + length]
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
