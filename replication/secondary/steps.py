"""Work that takes longer than an answer may: done a few seconds at a time, for as long as the same request comes again.

Meanwhile the connection serves nothing else: another request ends what is under way, and so does the end of the connection.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Generator

Work = Generator[int, None, Dict[str, Any]]
_SLICE_S = 2.0


class UnderWay:
    """What a connection is at. ``steps``: names looked at so far, for people."""

    def __init__(self) -> None:
        self._op = ""
        self._work: Any = None
        self._steps = 0

    def go_on(self, op: str, begin: Callable[[], Work]) -> Dict[str, Any]:
        """Some more of it; ``done`` with what came of it. Raises whatever the work does, and then it is over."""
        if self._work is None:
            self._op, self._work, self._steps = op, begin(), 0
        until = time.monotonic() + _SLICE_S
        try:
            while time.monotonic() < until:
                self._steps += next(self._work)
        except StopIteration as end:
            self._work = None
            return {"done": True, **end.value}
        except BaseException:
            self._work = None
            raise
        return {"done": False, "steps": self._steps}

    def end(self, unless: str = "") -> None:
        """Give up what is under way, unless it is this; it leaves nothing behind."""
        if self._work is not None and self._op != unless:
            work, self._work = self._work, None
            work.close()
