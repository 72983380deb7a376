"""Observations as they travel: see docs/formats.md."""

from __future__ import annotations

from typing import Any

from replication.observation import Entry, Listing


def encode_entry(entry: Entry) -> list[Any]:
    """An entry as it travels; one that is absent is just [name, null]."""
    i = entry.inode
    name = entry.name.decode("utf-8", "surrogateescape")
    if i is None:
        return [name, None]
    target = None if entry.target is None else entry.target.decode("utf-8", "surrogateescape")
    return [
        name, i.gfid.hex(), i.mode, i.uid, i.gid, i.nlink, i.ino, i.rdev, i.size,
        i.mtime_ns, i.atime_ns, i.ctime_ns, target, int(entry.change),
    ]  # fmt: skip


def encode_listing(listing: Listing) -> list[Any]:
    return [
        listing.parent.hex(), listing.complete, listing.part, listing.last,
        [encode_entry(entry) for entry in listing.entries],
    ]  # fmt: skip
