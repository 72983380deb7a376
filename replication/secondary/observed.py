"""Observations as they come over the wire, checked before anything else sees them."""

from __future__ import annotations

import stat
from typing import Any, List

from replication.secondary.layout import HIDDEN, ROOT_GFID
from replication.secondary.protocol import AgentError

# Fields of an observed name; of one that is absent only the first two.
NAME, GFID, MODE, UID, GID, NLINK, INO, RDEV, SIZE, MTIME, ATIME, CTIME, TARGET, CHANGE = range(14)
_FIELDS = 14

# What the primary's side knows about content; see replication/observation.py.
CHANGE_NONE, CHANGE_DATA, CHANGE_UNKNOWN, CHANGE_EMPTY = 0, 1, 2, 3

_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)

Observed = List[Any]


class Listing:
    """Observations of one directory; their names and gfids are bytes now.

    ``own`` is the observation of the directory itself, which travels under the name ".".
    """

    __slots__ = ("complete", "entries", "last", "own", "parent", "part")

    def __init__(self, parent: bytes, complete: bool, part: int, last: bool) -> None:
        self.parent = parent
        self.complete = complete
        self.part = part
        self.last = last
        self.entries: List[Observed] = []
        self.own: List[Observed] = []


def parse(raw: List[Any]) -> List[Listing]:
    """Check a request's listings. Raises AgentError("protocol"), ValueError, TypeError."""
    listings = []
    for parent_hex, complete, part, last, entries in raw:
        parent = gfid_of(parent_hex)
        listing = Listing(parent, bool(complete), int(part), bool(last))
        at_root = parent == ROOT_GFID
        keep = listing.entries.append
        for e in entries:
            name = e[NAME] = e[NAME].encode("utf-8", "surrogateescape")
            if e[GFID] is not None:
                if len(e) != _FIELDS or e[MODE] & 0o170000 not in _KINDS:
                    raise AgentError("protocol", "malformed observation", name.decode("utf-8", "replace"))
                e[GFID] = gfid_of(e[GFID])
                if e[GFID] == ROOT_GFID and name != b".":
                    raise AgentError("protocol", "the root has no name")
            if name == b"." and e[GFID] == parent and stat.S_ISDIR(e[MODE]):
                listing.own.append(e)
                continue
            check_name(name, at_root)
            keep(e)
        listings.append(listing)
    return listings


def gfid_of(text: str) -> bytes:
    """16 bytes from 32 hex digits. Raises AgentError("protocol")."""
    try:
        gfid = bytes.fromhex(text)
    except (ValueError, TypeError):
        gfid = b""
    if len(gfid) != 16:
        raise AgentError("protocol", "not a gfid: {!r}".format(text))
    return gfid


def check_name(name: bytes, at_root: bool) -> None:
    """A name that is one component and not ours. Raises AgentError("protocol")."""
    if b"/" in name or b"\0" in name or name in (b"", b".", b"..") or (at_root and name == HIDDEN):
        raise AgentError("protocol", "not a name", name.decode("utf-8", "replace"))
