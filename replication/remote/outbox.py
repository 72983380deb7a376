"""Frames on their way out, written by a thread of their own.

Whoever makes the next frame (reads files, compresses) need not wait until the wire has taken this one. What
waits is bounded, in bytes.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

_PACED_BYTES = 64 << 10  # written at once where there is a limit
_MOST_BYTES = 4 << 20  # waiting to be written, before makers of frames are held up


class Outbox:
    """Writes frames to ``writer`` in the order in which they are put.

    ``pace``, if set, is called in that thread with so many bytes before they are written, and returns when they may be;
    asked with 0 it says whether there is a limit at all.
    ``failed`` is called once, in the writing thread, with what the writer raised; nothing is written after that.
    """

    def __init__(self, writer: BinaryIO, failed: Callable[[Exception], None]) -> None:
        self.pace: Callable[[int], bool] | None = None
        self._writer = writer
        self._failed = failed
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._over = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="secondary-requests", daemon=True).start()

    def wait_for_room(self) -> None:
        """Until little enough is waiting, or nothing will ever be written again."""
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < _MOST_BYTES or self._over)

    def put(self, frame: bytes) -> None:
        """Have a frame written. Never blocks."""
        with self._changed:
            self._frames.append(frame)
            self._bytes += len(frame)
            self._changed.notify_all()

    def close(self) -> None:
        """Write what waits, then close the writer. Does not wait for that."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (frame := self._next()) is not None:
                self._write(frame)
                with self._changed:
                    self._bytes -= len(frame)
                    self._changed.notify_all()
        except Exception as error:
            self.close()
            self._failed(error)
        with contextlib.suppress(Exception):  # the link may be gone already
            self._writer.close()

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._over)
            return self._frames.popleft() if self._frames else None

    def _write(self, frame: bytes) -> None:
        view, pace = memoryview(frame), self.pace
        size = _PACED_BYTES if pace is not None and pace(0) else len(view)
        for start in range(0, len(view), size):
            part = view[start : start + size]
            if pace is not None and size < len(view):
                pace(len(part))
            while part:
                part = part[self._writer.write(part) or 0 :]
        self._writer.flush()
