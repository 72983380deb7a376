"""A delta by blocks, through the receiver that stays up: what was overwritten or appended is found, what was shifted is not.

Both ends digest the same blocks at the same time, and no process is started; the far side begins with a copy of what
it has. rsync finds shifted content too, at twice the time: when most of a stretch differs, it is asked instead.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from replication.remote.client import SecondaryClient

BLOCK = 128 << 10  # bytes; as the far side has it
_RANGE = 16 << 20  # bytes whose digests come in one answer
_AHEAD = 2  # ranges that the far side digests while we do ours
_WINDOW = 16  # pieces under way before the oldest answer is waited for


class Shifted(Exception):
    """Most of a stretch differs, as after an insertion before it."""


def send_blocks(
    client: SecondaryClient,
    gfid: str,
    fd: int,
    size: int,
    *,
    compress: bool,
    whatever: bool,
    progress: Callable[[int, int], None],
) -> int:
    """Bring the transfer that was begun for ``gfid`` to the content of ``fd``; the bytes that were sent.

    Raises Shifted, unless ``whatever``; SecondaryError, LinkLost.
    """
    starts = deque(range(0, size, _RANGE))
    asked: deque[tuple[int, Future[Any]]] = deque()
    pieces: deque[Future[Any]] = deque()
    sent = 0
    while starts or asked:
        while starts and len(asked) <= _AHEAD:
            start = starts.popleft()
            asked.append((start, client.submit("file_blocks", gfid=gfid, offset=start, length=_RANGE)))
        start, future = asked.popleft()
        differ, known = _differing(fd, start, min(start + _RANGE, size), future, progress)
        if known > _RANGE // 2 and not whatever:
            raise Shifted
        for offset, block in differ:
            packed = zlib.compress(block, 1) if compress else block
            z = len(packed) < len(block)
            data = packed if z else block
            pieces.append(client.submit("file_data", data, gfid=gfid, offset=offset, z=z))
            sent += len(block)
            while len(pieces) > _WINDOW:
                pieces.popleft().result()
    for piece in pieces:
        piece.result()
    return sent


def _differing(
    fd: int, start: int, stop: int, future: Future[Any], progress: Callable[[int, int], None]
) -> tuple[list[tuple[int, bytes]], int]:
    """Blocks that the far side has not, or not like this; and how many bytes of them it has otherwise."""
    ours: list[tuple[int, bytes, str]] = []
    for offset in range(start, stop, BLOCK):
        block = os.pread(fd, min(BLOCK, stop - offset), offset)
        ours.append((offset, block, sha256(block).hexdigest()[:32] if block else ""))
        progress(0, len(block))
    theirs: list[str] = future.result().header["digests"]
    differ = [
        (offset, block)
        for (offset, block, digest), there in zip(ours, theirs, strict=True)
        if block and digest != there
    ]
    known = sum(len(block) for offset, block in differ if theirs[(offset - start) // BLOCK])
    return differ, known
