"""The open segment: what was recorded since the last one was closed, each place once."""

from __future__ import annotations

import errno
import os
import stat as st
from collections.abc import Iterator

from replication.changelog.record import DirHint, Kind
from replication.changelog.segment import Place
from replication.volume.handle import open_by_handle, stat_at
from replication.volume.identity import gfid_from

_BORN = int(Kind.B)


class Node:
    """A directory of the volume that the recorder knows, and what the open segment says of its names."""

    __slots__ = ("children", "gfid", "handle", "name", "names", "parent", "path")

    def __init__(self, parent: Node | None, name: bytes, path: bytes) -> None:
        self.parent = parent
        self.name = name
        self.path = path  # relative to the root, b"" for the root
        self.handle = b""  # empty: only on the way to a directory that is known
        self.gfid = b""
        self.children: dict[bytes, Node] = {}
        self.names: dict[bytes, int] | None = None  # kinds of each name; b"" for the directory itself


class Gather:
    """Collects records until ``take``. ``count`` is the number of records."""

    def __init__(self) -> None:
        self.count = 0
        self._touched: list[Node] = []
        self._objects: dict[bytes, tuple[bytes, int]] = {}

    def add(self, node: Node, name: bytes, kinds: int) -> None:
        """Look again at ``name`` in a directory (b"": at the directory itself)."""
        names = node.names
        if names is None:
            names = node.names = {}
            self._touched.append(node)
        known = names.get(name, 0)
        if not known:
            self.count += 1
        names[name] = known | kinds

    def add_object(self, gfid: bytes, handle: bytes, kinds: int) -> None:
        """Look again at an object whose name is not known."""
        known = self._objects.get(gfid)
        if known is None:
            self.count += 1
        self._objects[gfid] = (handle, kinds | (known[1] if known else 0))

    def take(self) -> list[Place]:
        """All of it, and begin anew."""
        places = list(self._places())
        for node in self._touched:
            node.names = None
        self._touched = []
        self._objects = {}
        self.count = 0
        return places

    def _places(self) -> Iterator[Place]:
        born = {gfid: each for gfid, each in self._objects.items() if each[1] & _BORN}
        # They come first, so that whoever reads on from the middle has met them.
        yield from (_object(gfid, *each) for gfid, each in born.items())
        for node in self._touched:
            if node.names:
                yield Place(node.gfid, DirHint(node.handle, node.path), False, node.names)
        yield from (_object(gfid, *each) for gfid, each in self._objects.items() if gfid not in born)


def _object(gfid: bytes, handle: bytes, kinds: int) -> Place:
    return Place(gfid, DirHint(handle, b""), True, {b"": kinds})


def record_object(root_fd: int, gather: Gather, handle: bytes, kinds: int) -> None:
    """Record an object that has a name still, whichever that is. Needs CAP_DAC_READ_SEARCH; raises OSError.

    Whether it is in the volume at all, only a consumer can tell, by its gfid.
    """
    try:
        fd = open_by_handle(root_fd, handle, os.O_PATH)
    except OSError as error:
        if error.errno in (errno.ESTALE, errno.ENOENT):
            return
        raise
    try:
        stat = stat_at(fd, b"")
    finally:
        os.close(fd)
    if stat.nlink and not st.S_ISDIR(stat.mode):
        gather.add_object(gfid_from(handle, stat.btime_ns), handle, kinds)


class Tree:
    """Directories by handle and by place, so that a renamed one is found with all that is below it."""

    def __init__(self, handle: bytes, gfid: bytes) -> None:
        self.root = Node(None, b"", b"")
        self.root.handle, self.root.gfid = handle, gfid
        self.by_handle: dict[bytes, Node] = {handle: self.root}

    def put(self, path: bytes, handle: bytes, gfid: bytes) -> Node:
        """Note a directory, found at ``path`` just now."""
        known = self.by_handle.get(handle)
        if known is not None:
            self.cut(known)
        node = self.root
        for name in path.split(b"/") if path else ():
            child = node.children.get(name)
            if child is None:
                child = Node(node, name, node.path + b"/" + name if node.path else name)
                node.children[name] = child
            node = child
        if node.handle and node.handle != handle:
            del self.by_handle[node.handle]
            node = self._fresh(node)
        node.handle, node.gfid = handle, gfid
        self.by_handle[handle] = node
        return node

    def _fresh(self, old: Node) -> Node:
        # The old node may hold records of the open segment: it keeps them, and its identity.
        parent = old.parent
        if parent is None:
            raise ValueError("the root of the volume was replaced")
        node = Node(parent, old.name, old.path)
        for child in old.children.values():
            self.cut(child, unlink=False)
        parent.children[old.name] = node
        return node

    def at(self, node: Node, name: bytes) -> Node | None:
        return node.children.get(name)

    def cut(self, node: Node, *, unlink: bool = True) -> list[Node]:
        """Forget a directory and everything below it; returns those that had a handle. Never the root."""
        if node.parent is None:
            return []
        if unlink and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        gone: list[Node] = []
        pending = [node]
        while pending:
            node = pending.pop()
            pending.extend(node.children.values())
            node.children = {}
            if node.handle and self.by_handle.get(node.handle) is node:
                del self.by_handle[node.handle]
                gone.append(node)
        return gone

    def move(self, node: Node, parent: Node, name: bytes) -> None:
        """A directory is now called otherwise; what is below it stays known."""
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        there = parent.children.get(name)
        if there is not None:
            self.cut(there)
        node.parent, node.name = parent, name
        parent.children[name] = node
        pending = [node]
        while pending:
            node = pending.pop()
            above = node.parent.path if node.parent else b""
            node.path = above + b"/" + node.name if above else node.name
            pending.extend(node.children.values())

    def clear(self) -> None:
        """Forget everything but the root."""
        self.root.children = {}
        self.by_handle = {self.root.handle: self.root}
