"""The words of a changelog: what a record says, and what a segment of them is.

A record never says what was done, only where to look again: a name in a directory (E), an inode's
metadata (M), its content (D). Reading any changelog, ours or Gluster's, ends in these values.
Python 3.9: this goes to the nodes whose bricks are followed as well (replication/bricknode).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import NamedTuple


class Kind(IntFlag):
    """What may have changed. On a name, D of a directory means: anything below it, unrecorded."""

    E = 1  # the entry: what the name stands for
    M = 2  # owner, mode, times, extended attributes, ACL
    D = 4  # content
    B = 8  # of an object: a directory that was made, empty, and all that came into it since is recorded


class Record(NamedTuple):
    """One place to look at: a name (``parent`` and ``name``), an object (``gfid``), or both.

    A directory volume names places by parent and name, and objects without a known name (and
    directories' own metadata) by gfid alone. Gluster gives the gfid always, parent and name with E.
    """

    kinds: Kind
    gfid: bytes | None
    parent: bytes | None
    name: bytes | None
    first: bool = False  # it is the name under which the object was made
    directory: bool = False  # and that is a directory


class DirHint(NamedTuple):
    """How to find an object again: its file handle (always right), and its path when it was recorded.

    The path is relative to the volume's root (b"" is the root itself) and may be out of date. It is
    empty for objects that are no directories: nobody knows their names.
    """

    handle: bytes
    path: bytes


@dataclass(frozen=True)
class SegmentHeader:
    """Where the records come from. ``torn_bytes`` were at the end of the file and made no whole block."""

    format: str  # "seamark" or "gluster"
    version: str
    number: int = 0
    start_ns: int = 0
    end_ns: int = 0
    closed: bool = True
    torn_bytes: int = 0


@dataclass(frozen=True)
class Segment:
    """One segment as read. ``records`` may be iterated as often as you like, and is decoded lazily.

    ``dirs`` says of each directory that records name as parent (or as the object of an M) where it
    is; ``objects`` the same of other objects that are recorded by gfid alone. Both are empty for Gluster.
    """

    records: Iterable[Record]
    info: SegmentHeader
    dirs: Mapping[bytes, DirHint] = field(default_factory=dict)
    objects: Mapping[bytes, DirHint] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


class SegmentDamaged(Exception):
    """A changelog file that cannot be trusted: ``why``, and at which byte ``offset`` it shows."""

    def __init__(self, path: str, offset: int, why: str) -> None:
        super().__init__(f"{path}: damaged at byte {offset}: {why}")
        self.path = path
        self.offset = offset
        self.why = why


class SegmentTorn(SegmentDamaged):
    """The file ends within a record: it may be written to its end still."""
