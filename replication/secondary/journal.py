"""The journal: where to look after a crash.

Before a transaction touches the file system it writes here, in one write(2), which inodes it is about to
move, make or replace, and every name they may be found at. Its commit empties the journal. Whoever
takes the lock and finds it filled looks at those places and makes the index say what is really there
(recovery.py); so an operation that was done and not committed never makes our own file look foreign.

A line is a JSON object: {"at": ns, "n": [[gfid, kind, ino, limbo stamp, [[parent gfid, name], …]], …],
"d": [[gfid, new ino], …]}; n: names, d: content.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, Iterator, List

from replication.secondary import layout


class Journal:
    """The file of one root; its writers hold the lock. Raises OSError."""

    def __init__(self, hidden_fd: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(layout.JOURNAL, flags, 0o600, dir_fd=hidden_fd)

    def write(self, names: List[List[Any]], data: List[List[Any]]) -> None:
        """Say what comes next."""
        record: Dict[str, Any] = {"at": time.time_ns()}
        if names:
            record["n"] = names
        if data:
            record["d"] = data
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if os.write(self._fd, line) < len(line):
            raise OSError(28, "no room for the journal")

    def clear(self) -> None:
        os.ftruncate(self._fd, 0)

    def read(self) -> Iterator[Dict[str, Any]]:
        """What a transaction that did not end has left; a torn last line never began."""
        with open(os.dup(self._fd), "rb") as file:
            file.seek(0)
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    return

    def filled(self) -> bool:
        return os.fstat(self._fd).st_size > 0

    def close(self) -> None:
        os.close(self._fd)
