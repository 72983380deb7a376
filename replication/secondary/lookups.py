"""Small operations: names, what is dirty, figures, crawls, sync, and a check of the index against the tree."""

from __future__ import annotations

import os
import stat
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from replication.secondary import faults, held, kept, layout, sql
from replication.secondary.agent import Agent
from replication.secondary.index import Key, Row
from replication.secondary.namespace import limbo_name
from replication.secondary.observed import gfid_of
from replication.secondary.owner import life_of
from replication.secondary.protocol import AgentError
from replication.secondary.syscalls import free_bytes, list_directory, syncfs
from replication.secondary.tree import LostDirectory

_TOLD = 10_000  # characters


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def names(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Paths of each gfid, as the index has them now."""
    agent.tree.begin()
    rows = agent.index.inodes(gfid_of(g) for g in request["gfids"])
    keys = agent.index.names(row.id for row in rows.values())
    found = []
    for gfid in request["gfids"]:
        row = rows.get(bytes.fromhex(gfid))
        mine = keys.get(row.id, []) if row is not None else []
        paths = [_text(agent.tree.path(key)) for key in mine]
        if row is not None and row.id == layout.ROOT_ID:
            paths = [""]
        found.append([gfid, paths])
    return {"names": found}


def wanted(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """By which look each file's content is wanted: 0 it is not, -1 it is not known, -2 only its metadata is."""
    gfids = [gfid_of(g) for g in request["gfids"]]
    rows = agent.index.inodes(gfids)
    return {"wanted": [_wanted(rows.get(gfid)) for gfid in gfids]}


def _wanted(row: Optional[Row]) -> int:
    if row is None:
        return -1
    if not row.dirty:
        return -2 if row.is_file and row.pctime < 0 else 0
    # What is read because of this answer is later than what is here, also where no look asked for it.
    return max(row.dirty, row.got)


def dirty(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Files whose content is wanted; with ``undressed`` what lacks nothing but its metadata. What is in limbo is looked at again if it comes back.

    ``after`` is null or the ``next`` of the answer before. ``upto``: without what was seen to be gone until then, and is held: nobody can send it.
    """
    query = sql.UNDRESSED if request.get("undressed") else sql.DIRTY
    limit = int(request.get("limit") or 1000)
    after = int(request.get("after") or 0)
    rows = [Row(*t) for t in agent.index.db.execute(query, (after, limit))]
    names = agent.index.names(row.id for row in rows)
    items = []
    for row, path in _places(agent, rows, request):
        if path is not None:
            items.append([row.gfid.hex(), path])
        elif row.id in names and not request.get("undressed"):
            items.append([row.gfid.hex(), _text(agent.tree.path(names[row.id][0]))])
    return {"items": items, "next": str(rows[-1].id) if len(rows) == limit else None}


def unlisted(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Directories of which no complete listing was applied since they came, or were made again; ``after`` as above.

    The path is null for one that has no name, nor one that something above it has, or has such a one only as what is held (held.py):
    it may be called something else by now. What was seen to be gone until ``upto``, and is held still, is not among them: nobody can list it.
    ``tops``: without those in such ones.
    """
    limit = int(request.get("limit") or 1000)
    query = sql.UNLISTED_TOPS if request.get("tops") else sql.UNLISTED
    rows = [Row(*t) for t in agent.index.db.execute(query, (int(request.get("after") or 0), limit))]
    items = [[row.gfid.hex(), path] for row, path in _places(agent, rows, request)]
    return {"items": items, "next": str(rows[-1].id) if len(rows) == limit else None}


def whereabouts(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Of each of these directories that is known, and not gone, as above: whether it is listed, and its path, null as above."""
    rows = agent.index.inodes(gfid_of(g) for g in request["gfids"]).values()
    places = _places(agent, list(rows), request)
    return {"found": [[row.gfid.hex(), bool(row.listed), path] for row, path in places]}


def _places(agent: Agent, rows: List[Row], request: Dict[str, Any]) -> Iterator[Tuple[Row, Optional[str]]]:
    """Each with a path, None where it has none that is certain; but for those all of whose names are gone, and held."""
    upto = int(request.get("upto") or 0)
    agent.tree.begin()
    names = agent.index.names(row.id for row in rows)
    holds = agent.index.holds()
    for row in rows:
        keys = names.get(row.id, [])
        since = [_held_since(agent, key) if holds else None for key in keys]
        if keys and all(stamp is not None and stamp <= upto for stamp in since):
            continue
        at = [key for key, stamp in zip(keys, since) if stamp is None]
        path = b"" if row.id == layout.ROOT_ID else agent.tree.path(at[0]) if at else None
        if path is not None and path.startswith(layout.HIDDEN + b"/"):
            path = None
        yield row, None if path is None else _text(path)


def _held_since(agent: Agent, key: Key) -> Optional[int]:
    """When this name, or one above it, was seen first to be one that the primary has no more (the stamp of limbo); None: it is not."""
    found: List[int] = []
    at: Optional[Key] = key
    while at is not None:
        found += [stamp for (stamp,) in agent.index.db.execute(sql.IS_HELD, at)]
        at = agent.tree.place(at[0]) if at[0] != layout.ROOT_ID else None
    return min(found, default=None)


def unlist(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """These directories, and all below them, must be listed completely again.

    ``doubt``: and nothing is taken for granted of what is in them when it is looked at. A file is doubted as by the operation of that name.
    """
    with agent.transaction():
        for row in agent.index.inodes(gfid_of(g) for g in request["gfids"]).values():
            if request.get("doubt") and row.is_dir:
                # Its files are not wanted before they are looked at: nobody knows where they are.
                agent.index.db.execute(sql.DOUBT_VERSIONS, (row.id,))
            elif request.get("doubt"):
                _doubt(agent, row.id)
            agent.index.db.execute(sql.UNLIST_BELOW, (row.id,))
    return {}


def _doubt(agent: Agent, inode: int) -> None:
    agent.index.db.execute(sql.DOUBT, (inode,))
    agent.index.db.execute(sql.DOUBT_NAMES, (inode,))


def doubt(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Take nothing for granted of what is at a path and below it: it is compared when it is next looked at.

    ``count``: only say how much of it has not been looked at since. ``left`` is that; null for a path that
    the index does not know.
    """
    inode = agent.index.at(os.fsencode(str(request["path"])))
    if inode is None:
        return {"left": None}
    if not request.get("count"):
        with agent.transaction():
            _doubt(agent, inode)
    return {"left": agent.index.db.execute(sql.DOUBTED, (inode,)).fetchone()[0]}


def statistics(agent: Agent, _request: Dict[str, Any]) -> Dict[str, Any]:
    inodes, files, directories, wanted, in_limbo, size = agent.index.db.execute(sql.STATISTICS).fetchone()
    entries = agent.index.db.execute(sql.COUNT_ENTRIES).fetchone()[0]
    return {
        "entries": entries, "inodes": inodes, "files": files, "dirs": directories, "dirty": wanted,
        "limbo": in_limbo, "bytes": size, "displaced": int(agent.index.meta.get("displaced", 0)),
        "free_bytes": free_bytes(agent.tree.root_fd),
    }  # fmt: skip


def begin_crawl(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    with agent.transaction():
        agent.index.set_meta("crawl", str(request["crawl"]))
    return {"rebuilding": agent.rebuilding}


def end_crawl(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """``rebuilt``: the crawl saw everything, so the index is whole again."""
    with agent.transaction():
        if agent.index.meta.get("crawl") == str(request["crawl"]):
            agent.index.set_meta("crawl", None)
            if request.get("rebuilt") and agent.index.meta.get("mark") is None:
                agent.index.set_meta("mark", "{}")  # not known, but from here on changelogs may be applied
            if request.get("rebuilt") and agent.rebuilding:
                agent.index.set_meta("state", "ok")
                agent.index.db.execute(sql.DROP_INDEX_INO)
    return {"rebuilding": agent.rebuilding}


def mark(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Keep the session's mark, for who takes over; with a name on the root as well, as the primary does on its own.

    ``settings``: the session's, for who has lost it; then the mark may be left out.
    """
    name = str(request.get("name") or "")
    if name and (not name.startswith("seamark.") or "/" in name):
        raise AgentError("protocol", "not a name of ours")
    with agent.transaction():
        if request.get("settings") is not None:
            kept.keep_settings(agent.tree.hidden_fd, str(request["settings"]))
        if request.get("text") is None:
            return {"space": None}
        agent.index.set_meta("mark", str(request["text"]))
        if not name:
            return {"space": None}
        faults.point("mark")
        for space in ("trusted.", "user."):
            try:
                os.setxattr(agent.tree.root_fd, space + name, str(request["text"]).encode())
                return {"space": space}
            except OSError:
                continue
    return {"space": None}


def tell(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Keep what the primary says of how far behind this is, for the day when it cannot be asked."""
    with agent.transaction():
        agent.index.set_meta("told", str(request["text"])[:_TOLD])
    return {}


def sync(agent: Agent, _request: Dict[str, Any]) -> Dict[str, Any]:
    """All that was applied before this is durable when it returns."""
    with agent.transaction():
        # What comes from now on has not been synced, even if it comes while we sync.
        gen = agent.index.meta["gen"] + 1
        agent.index.set_meta("gen", gen)
    try:
        syncfs(agent.tree.root_fd)
        if agent.gfids is not None:
            agent.gfids.flush(agent.staging_fd)
    except OSError as error:
        with agent.transaction():
            # The kernel says so once: pages written since the last sync may be lost, and look clean.
            agent.index.db.execute(sql.AFTER_POWER_CUT, (gen - 1,))
            agent.index.db.execute(sql.DIGESTS_AFTER_POWER_CUT)
        raise AgentError("sync-failed", "writing to the disk failed: {}".format(error.strerror)) from None
    agent.index.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return {
        "boot_id": life_of(agent.volume), "free_bytes": free_bytes(agent.tree.root_fd), "gen": gen,
        "limbo": agent.index.db.execute(sql.LIMBO_LEFT).fetchone()[0], "since": held.since(agent),
        "held": agent.index.holds(),
    }  # fmt: skip


def check(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Compare the index with the tree: up to ``limit`` lines, each a path and what is wrong with it."""
    agent.tree.begin()
    limit = int(request.get("limit") or 100)
    found: List[List[str]] = []
    for line in _differences(agent):
        found.append(line)
        if len(found) >= limit:
            break
    return {"differences": found}


def _differences(agent: Agent) -> Iterator[List[str]]:
    pending = [layout.ROOT_ID]
    seen: Set[int] = {layout.ROOT_ID}
    while pending:
        directory = pending.pop()
        try:
            fd = agent.tree.fd(directory)
        except LostDirectory:
            yield ["{}".format(directory), "the directory is not there"]
            continue
        real = set(list_directory(fd))
        real.discard(layout.HIDDEN) if directory == layout.ROOT_ID else None
        for name, inode in agent.index.entries_of(directory, -1).items():
            row = agent.index.inode_by_id(inode)
            path = _text(agent.tree.path((directory, name)))
            if row is None:
                yield [path, "an entry without an inode"]
                continue
            wrong = _compare(row, fd, name, name in real, agent.namespace.shadows.at((directory, name)))
            real.discard(name)
            if wrong:
                yield [path, wrong]
            elif row.is_dir and inode not in seen:
                seen.add(inode)
                pending.append(inode)
            elif row.is_dir:
                yield [path, "a directory with two names"]
        for name in sorted(real):
            yield [_text(agent.tree.path((directory, name))), "not in the index"]
    for (gfid,) in agent.index.db.execute(sql.NAMELESS):
        yield [_text(gfid), "has no name and is not in limbo"]
    for parent, name, _, object_ino in agent.index.db.execute(sql.SHADOWS):
        if object_ino is None:
            yield [_text(agent.tree.path((parent, name))), "a shadow where nothing is to come"]
    yield from _limbo_differences(agent)


def _compare(row: Row, fd: int, name: bytes, there: bool, shadow: int) -> Optional[str]:
    """``shadow``: the inode number that the old object at a name may have, which awaits the new one."""
    if row.limbo is not None:
        return "has a name and is stamped for limbo"
    if row.ino and shadow:
        return "has its object, and a shadow"
    if shadow and not there:
        return "its shadow is not there"
    if not row.ino:
        if there and os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino != shadow:
            return "something stands where nothing should yet"
        return None
    if not there:
        return "is not there"
    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if found.st_ino != row.ino:
        return "is another inode ({}, not {})".format(found.st_ino, row.ino)
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(row.mode):
        return "is of another type"
    if row.is_file and not row.dirty and found.st_size != row.size:
        return "has another size"
    return None


def _limbo_differences(agent: Agent) -> Iterator[List[str]]:
    real = {name.decode() for name in list_directory(agent.tree.limbo_fd)}
    for t in agent.index.db.execute(sql.IN_LIMBO, (1 << 62, -1)):
        name = limbo_name(Row(*t)).decode()
        if name not in real:
            yield [name, "in limbo, and not there"]
        real.discard(name)
    for name in sorted(real):
        yield [name, "in limbo, not in the index"]
