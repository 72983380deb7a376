"""A large file in the pieces that are sent, without its holes."""

from __future__ import annotations

import errno
import os
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 1 << 19  # bytes of a large file in one frame
_BLOCK = 4096  # bytes; what is a hole or none


def data_pieces(fd: int, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of what is not a hole, from ``offset`` to ``size``. Source: lseek(2), SEEK_DATA."""
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
            end = min(os.lseek(fd, offset, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            end = size
        while offset < end:
            piece = os.pread(fd, min(_PIECE, end - offset), offset)
            if not piece:
                return
            yield offset, piece
            offset += len(piece)


def read_pieces(fd: int, offset: int, size: int, *, sparse: bool) -> Iterator[tuple[int, bytes]]:
    """The same, without asking where holes are: blocks of zeros of a ``sparse`` file. Raises OSError (ESTALE) where less can be read than is there."""
    while offset < size:
        piece = os.pread(fd, min(_PIECE, size - offset), offset)
        if not piece:
            if os.fstat(fd).st_size > offset:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return
        if not sparse:
            yield offset, piece
        else:
            blocks = ((at, piece[at : at + _BLOCK]) for at in range(0, len(piece), _BLOCK))
            for zeros, run in groupby(blocks, lambda block: not block[1].strip(b"\0")):
                if not zeros:
                    found = list(run)
                    yield offset + found[0][0], b"".join(block for _, block in found)
        offset += len(piece)
