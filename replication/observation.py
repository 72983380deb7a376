"""What is sent to a secondary: never an operation, always what is so on the primary now.

An Entry is the observation of one name in one directory. A Listing holds the observations of one
directory; a complete one also says that every name it does not hold is absent. Inode and Entry are
named tuples because a crawl makes one of each for every name it meets.
"""

from __future__ import annotations

import stat as st
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Change(IntEnum):
    """What the source of an observation knows about an inode's content."""

    NONE = 0  # a changelog says: name or metadata changed, content did not
    DATA = 1  # a changelog says: content changed
    UNKNOWN = 2  # a scan found it: content may have changed behind an equal size and mtime
    EMPTY = 3  # a changelog says: this directory was made, empty, and all that came into it since is recorded


class Inode(NamedTuple):
    """An inode as it is on the primary. Times in nanoseconds; mode is the full st_mode."""

    gfid: bytes
    mode: int
    uid: int
    gid: int
    nlink: int
    ino: int
    rdev: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int

    @property
    def is_dir(self) -> bool:
        return st.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return st.S_ISREG(self.mode)


class Entry(NamedTuple):
    """One name and what it is: an inode, or (None) absent. ``target`` is a symlink's text."""

    name: bytes
    inode: Inode | None
    target: bytes | None = None
    change: Change = Change.UNKNOWN


@dataclass(frozen=True, slots=True)
class Listing:
    """Observations of one directory. ``complete``: names not listed are absent.

    A complete listing may come in parts, numbered from 0; the one with ``last`` ends it.
    """

    parent: bytes
    entries: list[Entry] = field(default_factory=list)
    complete: bool = False
    part: int = 0
    last: bool = True
