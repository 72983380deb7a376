"""Rebuilding the index: what stands at an observed name and is of the observed kind is taken for it.

On a Gluster volume an object that has the observed gfid is taken, wherever it stands, and moved to its name; one of another
gfid only if none has it. Where somebody has said up to when another replication had brought everything here (gsyncd's
stime), what has the same gfid, size, times and attributes, and was not changed since, is believed.

A file of equal size and time is otherwise only compared. Names that the primary does not have, and the index
does not know, are displaced once their directory was listed completely.
"""

from __future__ import annotations

import os
import stat
from typing import Callable, Dict

from replication.secondary import layout, sql
from replication.secondary.agent import Agent
from replication.secondary.gfids import Gfids, gfid_at
from replication.secondary.index import Row, signed
from replication.secondary.observed import (
    CTIME,
    GFID,
    GID,
    INO,
    MODE,
    MTIME,
    NAME,
    NLINK,
    RDEV,
    SIZE,
    TARGET,
    UID,
    Listing,
    Observed,
)  # fmt: skip
from replication.secondary.tree import LostDirectory

_DISPLACED = layout.HIDDEN + b"/" + layout.DISPLACED + b"/"
_TRASH = b".trashcan"  # Gluster's own, and cannot be moved


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
        if agent.gfids is not None:
            _bring(agent, agent.gfids, e, parent, fd)
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
            row = row or new(e)
            _enter(agent, row, parent, name, found)
            if agent.gfids is not None and not row.is_dir and found.st_nlink > e[NLINK]:
                agent.gfids.drop(e[GFID], _DISPLACED)  # names that it does not have any more
            if _believed(agent, e, row, fd, name):
                row.dirty = 0
                row.pino, row.pctime = e[INO], e[CTIME]
                row.changed = True
    if listing.complete and listing.last and listing.part == 0:
        wanted = {e[NAME] for e in listing.entries if e[GFID] is not None}
        _displace_others(agent, parent, fd, lambda name: name in wanted)


def _bring(agent: Agent, gfids: Gfids, e: Observed, parent: Row, fd: int) -> None:
    """Have the object of the observed gfid stand at its name, if there is one. What stands there instead is displaced."""
    gfid, name = e[GFID], e[NAME]
    try:
        if gfid_at(fd, name) == gfid:
            return
        there = True
    except FileNotFoundError:
        there = False
    found = gfids.find(gfid)
    if found is None:
        return
    if agent.index.db.execute(sql.BY_INO, (signed(found.st_ino),)).fetchone() is not None:
        # It was taken at another name, and gets this one as by any look; not beside one that was displaced.
        if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
            gfids.drop(gfid, _DISPLACED)
        return
    if there and not gfids.is_within(gfid):
        return  # another's, of the same volume: what stands here has to do
    if there:
        agent.namespace.displacer.displace((parent.id, name))
    try:
        gfids.fetch(gfid, agent.tree.changing(parent.id), name)
    except PermissionError:
        pass  # another's: it is said when the object is made


def _believed(agent: Agent, e: Observed, row: Row, fd: int, name: bytes) -> bool:
    """Whether what was entered is the observed state, by the word of who replicated to here before."""
    if agent.gfids is None or not agent.believes_ns or not e[CTIME] or e[CTIME] > agent.believes_ns:
        return False
    if (row.mode, row.uid, row.gid) != (e[MODE], e[UID], e[GID]) or gfid_at(fd, name) != e[GFID]:
        return False
    return not row.is_file or (row.size, row.mtime) == (e[SIZE], e[MTIME])


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
                if wanted(name) or (parent.id == layout.ROOT_ID and _is_nobodys(agent, name)):
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
        if _is_link_of_ours(agent, os.stat(name, dir_fd=fd, follow_symlinks=False)):
            os.unlink(name, dir_fd=agent.tree.changing(parent.id))  # of what stays under its other names
        else:
            agent.namespace.displacer.displace((parent.id, name))


def _is_nobodys(agent: Agent, name: bytes) -> bool:
    return name == layout.HIDDEN or (agent.gfids is not None and name == _TRASH)


def _is_link_of_ours(agent: Agent, found: os.stat_result) -> bool:
    """Whether it is one more name of a file that was taken for one of ours already."""
    if agent.gfids is None or stat.S_ISDIR(found.st_mode) or found.st_nlink < 2:
        return False  # elsewhere new content comes in a new file: what is displaced keeps the old
    return agent.index.db.execute(sql.BY_INO, (signed(found.st_ino),)).fetchone() is not None
