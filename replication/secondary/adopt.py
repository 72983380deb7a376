"""Rebuilding the index: what stands at an observed name and is of the observed kind is taken for it.

A file of equal size and time is then only compared. Names that the primary does not have, and the index
does not know, are displaced once their directory was listed completely.
"""

from __future__ import annotations

import os
import stat
from typing import Callable, Dict

from replication.secondary import layout, sql
from replication.secondary.agent import Agent
from replication.secondary.index import Row, signed
from replication.secondary.observed import GFID, MODE, NAME, RDEV, TARGET, Listing, Observed
from replication.secondary.tree import LostDirectory


def adopt(
    agent: Agent, rows: Dict[bytes, Row], parent: Row, listing: Listing, new: Callable[[Observed], Row]
) -> None:
    """Enter what stands at the names of a listing into the index. Within a transaction."""
    if not parent.ino:
        return
    index = agent.index
    try:
        fd = agent.tree.fd(parent.id)
    except LostDirectory:
        return
    known = index.entries(parent.id, [e[NAME] for e in listing.entries])
    for e in listing.entries:
        name = e[NAME]
        if e[GFID] is None or name in known:
            continue
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        row = rows.get(e[GFID])
        if row is not None and row.ino and row.ino == found.st_ino and not row.is_dir:
            index.save([], [(parent.id, name, row.id)], [])  # one more name of a file that we have already
            continue
        owner = index.db.execute(sql.BY_INO, (signed(found.st_ino),)).fetchone()
        if owner is not None:
            if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                agent.namespace.shadows.cast((parent.id, name), found.st_ino)  # another name of that file
            continue
        if (row is None or (row.new and not row.ino)) and _fits(e, found, fd, name):
            _enter(agent, row or new(e), parent, name, found)
    if listing.complete and listing.last and listing.part == 0:
        wanted = {e[NAME] for e in listing.entries if e[GFID] is not None}
        _displace_others(agent, parent, fd, lambda name: name in wanted)


def _fits(e: Observed, found: os.stat_result, fd: int, name: bytes) -> bool:
    kind = stat.S_IFMT(e[MODE])
    if kind != stat.S_IFMT(found.st_mode):
        return False
    if kind == stat.S_IFLNK:
        target: bytes = (e[TARGET] or "").encode("utf-8", "surrogateescape")
        return os.readlink(name, dir_fd=fd) == target
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        return bool(found.st_rdev == e[RDEV])
    return True


def _enter(agent: Agent, row: Row, parent: Row, name: bytes, found: os.stat_result) -> None:
    row.ino = found.st_ino
    row.mode, row.uid, row.gid = found.st_mode, found.st_uid, found.st_gid
    row.size = found.st_size if row.is_file else 0
    row.mtime, row.atime = found.st_mtime_ns, found.st_atime_ns
    row.dirty = 1 if row.is_file else 0
    row.new = True
    agent.index.save([row], [(parent.id, name, row.id)], [])


def displace_unseen(agent: Agent, parent: Row) -> None:
    """The same for a directory that came in parts; ``seen`` holds its names."""
    db = agent.index.db
    fd = agent.tree.fd(parent.id)
    _displace_others(
        agent, parent, fd, lambda n: db.execute(sql.IS_SEEN, (parent.id, n)).fetchone() is not None
    )


def _displace_others(agent: Agent, parent: Row, fd: int, wanted: Callable[[bytes], bool]) -> None:
    if agent.leaves_others:
        return
    others = []
    # A new descriptor, for the reason that list_directory gives; but not a million names at once.
    fresh = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(fresh) as found:
            for entry in found:
                name = os.fsencode(entry.name)
                if wanted(name) or (parent.id == layout.ROOT_ID and name == layout.HIDDEN):
                    continue
                if agent.filters and agent.filters.excludes(
                    agent.tree.path((parent.id, name)), entry.is_dir(follow_symlinks=False)
                ):
                    continue
                if agent.index.entry(parent.id, name) is None:
                    others.append(name)
    finally:
        os.close(fresh)
    for name in others:
        agent.namespace.displacer.displace((parent.id, name))
