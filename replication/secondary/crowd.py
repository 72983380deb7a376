"""Many files of a volume at a time, by threads: each waits for answers of bricks most of the time, and for their disks.

A file that is made on a volume takes about twelve answers, one after the other; those of several files come together, and
bricks write their journal once for several of them.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List, Optional, Sequence, TypeVar

_THREADS = 8
_GROUP = 128  # files

_One = TypeVar("_One")
_Result = TypeVar("_Result")
_lock = threading.Lock()
_pool: Optional[ThreadPoolExecutor] = None


def groups(items: Sequence[_One]) -> List[Sequence[_One]]:
    """So many at a time that directories stay open, and what was looked up is still so."""
    return [items[start : start + _GROUP] for start in range(0, len(items), _GROUP)]


def each(work: Callable[[_One], _Result], items: Sequence[_One]) -> List[_Result]:
    """What ``work`` gives for each, in their order. All have ended when it returns, or raises what the first of them did."""
    if len(items) < 2:
        return [work(item) for item in items]
    count = min(_THREADS, len(items))

    def some(first: int) -> List[_Result]:
        return [work(item) for item in items[first::count]]

    under_way = [_threads().submit(some, first) for first in range(1, count)]
    failed: Optional[BaseException] = None
    parts: List[List[_Result]] = []
    for number in range(count):
        try:
            parts.append(under_way[number - 1].result() if number else some(0))
        except BaseException as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return [parts[at % count][at // count] for at in range(len(items))]


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="crowd")
        return _pool
