"""Writing files aside while others are being placed: most of either is spent in the kernel, without the interpreter's lock."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Deque, Iterator, List, Optional, Sequence, Tuple

from replication.secondary.agent import Agent
from replication.secondary.metadata import Item
from replication.secondary.receiver import Errors, Staged, stage_one

_AT_ONCE = 256  # files of one portion
_PORTIONS = 2  # written ahead: so many files, twice, are open besides those being placed

Files = Sequence[Tuple[Item, memoryview]]
Portion = Tuple[List[Staged], Errors]

_thread: Optional[ThreadPoolExecutor] = None


class Ahead:
    """Files being written aside, from the moment of its making; to be placed portion by portion."""

    def __init__(self, agent: Agent, files: Files) -> None:
        global _thread
        if _thread is None:
            _thread = ThreadPoolExecutor(1, "ahead")
        self._agent = agent
        self._rest = deque(files[start : start + _AT_ONCE] for start in range(0, len(files), _AT_ONCE))
        self._under_way: Deque[Future[Portion]] = deque()
        self._open: List[Staged] = []
        for _ in range(_PORTIONS):
            self._next()

    def _next(self) -> None:
        if self._rest:
            assert _thread is not None
            self._under_way.append(_thread.submit(_stage, self._agent, self._rest.popleft()))

    def portions(self) -> Iterator[Portion]:
        """Files that are written, with what went wrong with others; closed when the next ones are asked for."""
        while self._under_way:
            self._open, errors = self._under_way.popleft().result()
            self._next()
            yield self._open, errors
            self._close()

    def _close(self) -> None:
        for file in self._open:
            file.close()
        self._open = []

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        """What nobody placed vanishes."""
        self._close()
        for future in self._under_way:
            if not future.cancel() and future.exception() is None:
                self._open = future.result()[0]
                self._close()


def _stage(agent: Agent, files: Files) -> Portion:
    staged: List[Staged] = []
    errors: Errors = []
    try:
        for item, piece in files:
            stage_one(agent, item, piece, staged, errors)
    except BaseException:
        for file in staged:
            file.close()
        raise
    return staged, errors
