"""Work that takes longer than an answer may: what is done of it within a few seconds is said, and the same request asks again.

It goes on between two requests: whoever asks may be gone without the connection ending, and others wait for what it holds
locked. Meanwhile the connection serves nothing else: another request ends what is under way, and so does the end of the connection.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Generator, Optional

Work = Generator[int, None, Dict[str, Any]]
_SLICE_S = 2.0


class UnderWay:
    """What a connection is at. ``steps``: names looked at so far, for people."""

    def __init__(self) -> None:
        self._op = ""
        self._work: Any = None
        self._steps = 0
        self._answer: Optional[Dict[str, Any]] = None
        self._error: Optional[Exception] = None

    def go_on(self, op: str, begin: Callable[[], Work]) -> Dict[str, Any]:
        """Some more of it; ``done`` with what came of it. Raises whatever the work does, and then it is over."""
        if self._work is None:
            self._op, self._work, self._steps = op, begin(), 0
        until = time.monotonic() + _SLICE_S
        self.go_on_until(lambda: time.monotonic() >= until)
        answer, error = self._answer, self._error
        if answer is None and error is None:
            return {"done": False, "steps": self._steps}
        self._work = self._answer = self._error = None
        if error is not None:
            raise error
        return {"done": True, **(answer or {})}

    def go_on_until(self, told: Callable[[], bool]) -> None:
        """Go on, unless it is over. What comes of it is said to whoever asks next."""
        if self._work is None or self._answer is not None or self._error is not None:
            return
        try:
            while not told():
                self._steps += next(self._work)
        except StopIteration as end:
            self._answer = end.value
        except Exception as error:
            self._error = error

    def end(self, unless: str = "") -> None:
        """Give up what is under way, unless it is this; it leaves nothing behind."""
        if self._work is not None and self._op != unless:
            work, self._work = self._work, None
            self._answer = self._error = None
            work.close()
