"""Directories of ours in which copies of the secondary are made and kept: below ``.seamark/snapshots`` and ``.seamark/views``.

What is being made or thrown away has a name that says so, and is held by a lock: where nobody holds it, its process was
killed, and it goes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

from replication.secondary import layout
from replication.secondary.copies import throw_away
from replication.secondary.directories import our_directory
from replication.secondary.syscalls import list_directory, rename_new

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAKING, _GOING = b"new.", b"gone."
_RECORD = b"record"


class Home:
    """A directory under way, locked by this process until ``close``."""

    def __init__(self, hidden_fd: int, kind: bytes) -> None:
        self.kind_fd = our_directory(hidden_fd, kind)
        while True:
            self.name = _MAKING + b"%d.%d" % (os.getpid(), time.time_ns())
            os.mkdir(self.name, 0o700, dir_fd=self.kind_fd)
            try:
                self.fd = os.open(self.name, _DIR, dir_fd=self.kind_fd)
            except FileNotFoundError:
                continue  # somebody swept it before it had a lock
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            if os.fstat(self.fd).st_nlink:  # or swept it now
                return
            os.close(self.fd)

    def write(self, record: Dict[str, Any]) -> None:
        """Say what it is, durably."""
        fd = os.open(_RECORD, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        with open(fd, "w") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(fd)

    def rename(self, name: bytes) -> None:
        """Under way no more: it stays, by a name that must be free."""
        rename_new(self.kind_fd, self.name, self.kind_fd, name)
        os.fsync(self.kind_fd)
        self.name = name

    def throw_away(self) -> Iterator[int]:
        """Nothing of it is left."""
        yield from throw_away(self.kind_fd, self.name)

    def close(self) -> None:
        """What is under way still is swept by whoever comes next."""
        os.close(self.fd)
        os.close(self.kind_fd)


def records(hidden_fd: int, kind: bytes) -> List[Dict[str, Any]]:
    """Those that stay, in the order of their names. One that cannot be read is in it with its name alone."""
    found = [
        {**_read(hidden_fd, kind, name), "name": name.decode("ascii", "replace")}
        for name in _names(hidden_fd, kind)
        if not name.startswith((_MAKING, _GOING))
    ]
    return sorted(found, key=lambda record: str(record["name"]))


def _names(hidden_fd: int, kind: bytes) -> List[bytes]:
    try:
        fd = os.open(kind, _DIR, dir_fd=hidden_fd)
    except FileNotFoundError:
        return []
    try:
        return list_directory(fd)
    finally:
        os.close(fd)


def _read(hidden_fd: int, kind: bytes, name: bytes) -> Dict[str, Any]:
    path = b"/proc/self/fd/%d/%s/%s/%s" % (hidden_fd, kind, name, _RECORD)
    try:
        with open(path, "rb") as file:
            record = json.loads(file.read())
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def going() -> bytes:
    """A name for what is to be thrown away."""
    return _GOING + b"%d.%d" % (os.getpid(), time.time_ns())


@contextmanager
def reading(hidden_fd: int, kind: bytes, name: bytes) -> Iterator[int]:
    """A descriptor of one that stays; meanwhile nobody removes it. Raises OSError; FileNotFoundError where there is none."""
    path = kind + b"/" + name
    fd = os.open(path, _DIR, dir_fd=hidden_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), os.stat(path, dir_fd=hidden_fd, follow_symlinks=False)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        yield fd
    except BlockingIOError:  # it is being removed
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
    finally:
        os.close(fd)


def remove(hidden_fd: int, kind: bytes, name: bytes) -> Iterator[int]:
    """Throw away one that stays. Raises OSError; FileNotFoundError where there is none, BlockingIOError while somebody reads it."""
    kind_fd = os.open(kind, _DIR, dir_fd=hidden_fd)
    try:
        fd = os.open(name, _DIR, dir_fd=kind_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            away = going()
            os.rename(name, away, src_dir_fd=kind_fd, dst_dir_fd=kind_fd)
            yield from throw_away(kind_fd, away)
        finally:
            os.close(fd)
    finally:
        os.close(kind_fd)


def left_behind(hidden_fd: int) -> bool:
    """Whether something may be there that a killed process was making or throwing away."""
    return any(
        name.startswith((_MAKING, _GOING))
        for kind in (layout.SNAPSHOTS, layout.VIEWS)
        for name in _names(hidden_fd, kind)
    )


def sweep(hidden_fd: int) -> Iterator[int]:
    """Throw away what processes that were killed have left."""
    for kind in (layout.SNAPSHOTS, layout.VIEWS):
        for name in _names(hidden_fd, kind):
            if name.startswith((_MAKING, _GOING)):
                yield from _sweep_one(hidden_fd, kind, name)


def _sweep_one(hidden_fd: int, kind: bytes, name: bytes) -> Iterator[int]:
    kind_fd = os.open(kind, _DIR, dir_fd=hidden_fd)
    fd: Optional[int] = None
    try:
        fd = os.open(name, _DIR, dir_fd=kind_fd)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield from throw_away(kind_fd, name)
    except (BlockingIOError, FileNotFoundError):
        pass  # somebody is at it
    finally:
        if fd is not None:
            os.close(fd)
        os.close(kind_fd)


def sweep_aside(hidden_fd: int) -> None:
    """The same beside other work: there may be many names to remove."""
    if left_behind(hidden_fd):
        threading.Thread(target=_sweep_all, args=(os.dup(hidden_fd),), name="sweep", daemon=True).start()


def _sweep_all(hidden_fd: int) -> None:
    try:
        for _ in sweep(hidden_fd):
            pass
    except OSError:
        pass  # the next one tries again
    finally:
        os.close(hidden_fd)
