"""Frames that came, read by a thread of its own: the link goes on while an earlier request is worked on.

Over a long link that counts: what the server of ssh lets a sender have under way is little, and it lets go
on only when this process has read.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, BinaryIO, Deque, Dict, Optional, Tuple, Union

from replication.secondary.protocol import AgentError, agent_error, read_frame

Frame = Tuple[Dict[str, Any], bytes]

_MOST_BYTES = 8 << 20  # of payloads that wait; then the sender does


class Inbox:
    """The frames of a stream, in order."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._came: Deque[Union[Frame, AgentError, None]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next(self) -> Optional[Frame]:
        """The next frame, None at the end of the stream. Raises AgentError on what is no frame."""
        with self._changed:
            self._changed.wait_for(lambda: self._came)
            came = self._came.popleft()
            if isinstance(came, AgentError):
                raise came
            if came is not None:
                self._bytes -= len(came[1])
                self._changed.notify_all()
            return came

    def has_come(self) -> bool:
        """Whether the next one is there, or the end."""
        return bool(self._came)

    def _read(self) -> None:
        came: Union[Frame, AgentError, None] = None
        while True:
            try:
                came = read_frame(self._stream)
            except AgentError as error:
                came = error
            except OSError:
                came = None  # as good as its end
            except Exception as error:  # memory, for one: whoever waits for a frame must hear of it
                came = agent_error(error)
            with self._changed:
                self._came.append(came)
                self._changed.notify_all()
                if not isinstance(came, tuple):
                    return
                self._bytes += len(came[1])
                self._changed.wait_for(lambda: self._bytes < _MOST_BYTES)
