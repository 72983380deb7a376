"""Copies of a whole secondary as it was at one moment: its tree, its index, its limbo. Snapshots and views are made of them.

A copy lies in a directory of its own below ``.seamark``, its *home*, as ``root``. The moment is one between two
transactions: whoever makes a copy holds the lock that all agents of the root share. What a transaction that was killed has
left is copied with the journal that says so. Then the copy is made complete in itself, as a secondary is that is promoted.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

from replication.secondary import layout, overlay, sql
from replication.secondary.agent import Agent
from replication.secondary.clones import (
    can_clone,
    clone,
    copy_content,
    is_subvolume,
    removal,
    remove_subvolume,
    snapshot_subvolume,
)
from replication.secondary.completion import complete
from replication.secondary.index import Index
from replication.secondary.metadata import Powers
from replication.secondary.mirror import Mirror
from replication.secondary.steps import Work
from replication.secondary.syscalls import list_directory

BTRFS, REFLINK, COPY = "btrfs", "reflink", "copy"
ROOT = b"root"
_LINKS = b"links"
_TABLE = b"inodes.sqlite"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT = (layout.OWNER, layout.INDEX, layout.INDEX + b"-wal")
_EMPTY = (layout.LIMBO, layout.STAGING, layout.DISPLACED, layout.TEMPORARY)


def method_here(root_fd: int, dir_fd: int) -> str:
    """How this file system copies a tree in no time and no room; empty: it does not. ``dir_fd``: to try it in."""
    if is_subvolume(root_fd):
        return BTRFS
    return REFLINK if can_clone(dir_fd) else ""


class Source:
    """What a copy is made of: a secondary that others work on, or a copy, which nothing changes any more."""

    def __init__(self, root_fd: int, agent: Optional[Agent] = None) -> None:
        self.root_fd = root_fd
        self.agent = agent
        self.hidden_fd = os.open(layout.HIDDEN, _DIR, dir_fd=root_fd)
        self.limbo_fd = os.open(layout.LIMBO, _DIR, dir_fd=self.hidden_fd)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.limbo_fd)
        os.close(self.hidden_fd)

    @contextmanager
    def between_transactions(self) -> Iterator[None]:
        """Nobody changes it meanwhile, but who writes to a file in place; of that the index knows."""
        if self.agent is None:
            yield
            return
        fd = os.open(layout.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.hidden_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def copy(source: Source, home_fd: int, method: str) -> Iterator[int]:
    """Make ``root`` in a home, a step for each name. Raises OSError, sqlite3.Error."""
    if method == BTRFS:
        with source.between_transactions():
            snapshot_subvolume(source.root_fd, home_fd, ROOT)
        yield from _without_copies(home_fd)
        return
    for name in (ROOT, _LINKS):
        os.mkdir(name, 0o700, dir_fd=home_fd)
    links_fd, root_fd = (os.open(name, _DIR, dir_fd=home_fd) for name in (_LINKS, ROOT))
    share = method == REFLINK
    table = b"/proc/self/fd/%d/%s" % (home_fd, _TABLE)
    mirror = Mirror(links_fd, table, share=share)
    try:
        if source.agent is not None:
            yield from mirror.run(source.root_fd, root_fd, final=False)
        with source.between_transactions():
            yield from mirror.run(source.root_fd, root_fd, final=True)
            hidden_fd = _our_directories(root_fd)
            try:
                yield from _limbo(source, mirror, hidden_fd)
                yield from _files(source.hidden_fd, hidden_fd, share=share)
            finally:
                os.close(hidden_fd)
        mirror.finish()
        _renumber(root_fd, table)
        found = os.fstat(source.root_fd)
        os.utime(root_fd, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        mirror.close()
        os.close(root_fd)
        os.close(links_fd)
    yield from removal(home_fd, _LINKS)
    os.unlink(_TABLE, dir_fd=home_fd)


def opened(root_fd: int) -> Agent:
    """A copy as a secondary of its own, which nobody else has open; the descriptor becomes its. Raises OSError, sqlite3.Error."""
    index = Index(b"/proc/self/fd/%d/%s/%s" % (root_fd, layout.HIDDEN, layout.INDEX))
    index.read_meta()
    staging = b"agent.%d.0" % os.getpid()
    hidden = b"%s/%s" % (layout.HIDDEN, layout.STAGING)
    os.mkdir(b"%s/%s" % (hidden, staging), 0o700, dir_fd=root_fd)
    agent = Agent(root_fd, index, Powers(), staging)
    agent.epoch = index.meta.get("epoch", 0)
    return agent


def make_complete(root_fd: int) -> Work:
    """Complete a copy in itself, as a promotion does; what it holds, and what had to be done. Closes the descriptor."""
    agent = opened(root_fd)
    try:
        completed = yield from complete(agent)
        _, files, _, _, _, size = agent.index.db.execute(sql.STATISTICS).fetchone()
        return {"files": files, "bytes": size, "completed": completed}
    finally:
        agent.close()


def throw_away(dir_fd: int, home: bytes) -> Iterator[int]:
    """Remove a home with its copy, whatever is left of either. Raises OSError."""
    try:
        fd = os.open(home, _DIR, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    try:
        yield from overlay.unmount(dir_fd, fd)
        if _is_subvolume_at(fd):
            remove_subvolume(fd, ROOT)
            yield 1
    finally:
        os.close(fd)
    yield from removal(dir_fd, home)


def _is_subvolume_at(home_fd: int) -> bool:
    try:
        fd = os.open(ROOT, _DIR, dir_fd=home_fd)
    except FileNotFoundError:
        return False
    try:
        return is_subvolume(fd)
    finally:
        os.close(fd)


def _without_copies(home_fd: int) -> Iterator[int]:
    """A subvolume's snapshot has the homes of other copies, whose own subvolumes are empty directories in it."""
    root_fd = os.open(ROOT, _DIR, dir_fd=home_fd)
    try:
        hidden_fd = os.open(layout.HIDDEN, _DIR, dir_fd=root_fd)
        try:
            for name in (layout.SNAPSHOTS, layout.VIEWS):
                if name in list_directory(hidden_fd):
                    yield from removal(hidden_fd, name)
        finally:
            os.close(hidden_fd)
    finally:
        os.close(root_fd)


def _our_directories(root_fd: int) -> int:
    os.mkdir(layout.HIDDEN, 0o700, dir_fd=root_fd)
    hidden_fd = os.open(layout.HIDDEN, _DIR, dir_fd=root_fd)
    for name in _EMPTY:
        os.mkdir(name, 0o700, dir_fd=hidden_fd)
    return hidden_fd


def _limbo(source: Source, mirror: Mirror, hidden_fd: int) -> Iterator[int]:
    """What waits for its name goes along."""
    target_fd = os.open(layout.LIMBO, _DIR, dir_fd=hidden_fd)
    try:
        yield from mirror.run(source.limbo_fd, target_fd, final=True)
    finally:
        os.close(target_fd)


def _files(source_fd: int, target_fd: int, *, share: bool) -> Iterator[int]:
    """The index, and what else we keep in files. No transaction is under way: what is in them belongs together.

    A checkpoint of the index may be: it moves pages from the -wal, which keeps them, until the next transaction.
    """
    for name in _KEPT:
        try:
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source_fd)
        except FileNotFoundError:
            continue
        try:
            target = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target_fd
            )
            try:
                if share:
                    clone(source, target)
                else:
                    yield from copy_content(source, target, os.fstat(source).st_size)
            finally:
                os.close(target)
        finally:
            os.close(source)
    with open(os.open(layout.JOURNAL, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=source_fd), "rb") as source_file:
        content = source_file.read()
    fd = os.open(layout.JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=target_fd)
    with open(fd, "wb") as target_file:
        target_file.write(content)


def _renumber(root_fd: int, table: bytes) -> None:
    """Have the copied index, and its journal, speak of the inodes of the copy."""
    hidden = b"/proc/self/fd/%d/%s/" % (root_fd, layout.HIDDEN)
    index = Index(hidden + layout.INDEX)
    try:
        index.db.execute(sql.ATTACH_COPIED, (os.fsdecode(table),))
        index.db.execute("BEGIN IMMEDIATE")
        index.db.execute(sql.RENUMBER_INODES)
        index.db.execute(sql.RENUMBER_SHADOWS)
        index.db.execute("COMMIT")
        _renumber_journal(index.db, hidden + layout.JOURNAL)
    finally:
        index.close()


def _renumber_journal(db: sqlite3.Connection, path: bytes) -> None:
    lines: List[bytes] = []
    with open(path, "rb") as file:
        for line in file:
            try:
                record: Dict[str, Any] = json.loads(line)
            except ValueError:
                break  # torn: it never began
            for name in record.get("n", ()):
                name[2] = _new(db, name[2])
            for content in record.get("d", ()):
                content[1] = _new(db, content[1])
            lines.append(json.dumps(record, separators=(",", ":")).encode() + b"\n")
    with open(path, "wb") as file:
        file.writelines(lines)


def _new(db: sqlite3.Connection, ino: int) -> int:
    """The number of an inode's copy: 0 while it has none (the journal's own word), -1 where it was not met."""
    if not ino:
        return 0
    found = db.execute(sql.COPIED, (ino,)).fetchone()
    return -1 if found is None else int(found[0])
