"""Seeding: an old primary becomes a secondary, with an index of what both sides agree on. The ops `seed_…`.

Whoever was promoted knows of each object which state of ours it had. That comes here as rows of an index, with
the other side's identities, and is compared with what stands here (agreeing.py). What is agreed on is ours to change,
and is not sent again. Everything else was written here and never replicated: it is displaced, and told of. Until
`seed_commit` nothing is changed but a temporary file; and only when all is done, the owner's file makes it a secondary.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Any, Callable, Dict, Iterator, Optional

from replication.secondary import faults, layout, owner, sql
from replication.secondary.agent import Agent
from replication.secondary.agreeing import TURN_S, Comparison
from replication.secondary.completion import path_of
from replication.secondary.filters import Filters
from replication.secondary.index import Index, Row, root_row
from replication.secondary.metadata import Powers
from replication.secondary.protocol import AgentError
from replication.secondary.syscalls import syncfs

_SHOWN = 100  # errors, and files that moved


class Seeding:
    """One connection's, from `seed_begin` on."""

    def __init__(self, root: bytes, request: Dict[str, Any], limited: bool) -> None:
        """``session``, ``volume``: whose secondary it will be. ``term``: of the promotion there. ``limited``: the connection is
        one of a key that may serve its session and nothing else. Raises AgentError when this is not to become one.
        """
        self._request = request
        self._root_fd = owner.open_root(root, False)
        self._owner = owner.read_owner(self._root_fd)
        self._check(limited)
        self._index = Index(b"")
        self._compare = Comparison(
            self._root_fd,
            self._index,
            Filters(request.get("filters") or ()),
            int(request.get("doubt_ns") or 0),
        )
        self._index.db.execute("BEGIN")
        self._index.create(root_row(os.fstat(self._root_fd)))
        self._index.db.execute(sql.INDEX_INO)
        self._ends: Optional[Iterator[Optional[Dict[str, Any]]]] = None

    def _check(self, limited: bool) -> None:
        found, term = self._owner, int(self._request["term"])
        promoted = (found or {}).get("promoted")
        if found is not None and promoted is None:
            raise AgentError("owned", "this belongs to session {}".format(found["session"]))
        if found is not None and term <= int(found.get("term", 0)):
            raise AgentError("stale-term", "it is in term {} already".format(found.get("term", 0)))
        if limited and not (promoted or {}).get("handed"):
            raise AgentError(
                "permission",
                "the session's own key may not make a secondary of it: come with access of your own (--identity)",
            )

    def close(self) -> None:
        if self._ends is not None:
            self._ends.close()  # type: ignore[attr-defined]
        self._index.close()
        os.close(self._root_fd)

    def rows(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """``rows``: [id, gfid, mode, uid, gid, size, mtime, atime, rdev, ino here, ctime here, ino there, ctime there, target];
        ctime 0, and target null: not known. ``names``: [parent, name, inode].
        """
        rows, known = [], []
        for id_, gfid, mode, uid, gid, size, mtime, atime, rdev, ino, ctime, pino, pctime, target in request[
            "rows"
        ]:
            row = Row(
                id_, bytes.fromhex(gfid), mode, uid, gid, size, mtime, atime, rdev, ino, 0, pino, pctime,
                int(stat.S_ISDIR(mode)), None, None, 1, 0,
            )  # fmt: skip
            rows.append(row.insert_values())
            known.append((id_, ctime, None if target is None else os.fsencode(target)))
        self._index.db.executemany(sql.SAVE_INODE, rows)
        self._compare.know(known)
        self._index.db.executemany(sql.SAVE_ENTRY, [(p, os.fsencode(n), i) for p, n, i in request["names"]])
        self._index.meta["next_id"] = max([self._index.meta["next_id"], *(r[0] + 1 for r in rows)])
        return {}

    def compare(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Go on comparing; ``anew`` begins again. ``done``: all was looked at, and what is unproven can be proved."""
        if request.get("anew"):
            self._compare.begin()
        return self._compare.go_on()

    def unproven(self, request: Dict[str, Any]) -> Dict[str, Any]:
        return self._compare.unproven(int(request.get("after") or 0))

    def prove(self, request: Dict[str, Any]) -> Dict[str, Any]:
        return {"done": self._compare.prove(request["items"], trusted=bool(request["trusted"]))}

    def findings(self, request: Dict[str, Any]) -> Dict[str, Any]:
        return self._compare.findings(int(request.get("after") or 0))

    # ---- for good

    def commit(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Go on with displacing what is not agreed on; when that is ``done``, it is a secondary. Nothing that stands here is deleted."""
        if self._ends is None:
            if not self._compare.is_over():
                raise AgentError("protocol", "compare and prove come first, until they are done")
            self._ends = self._commit(request)
        until = time.monotonic() + TURN_S
        while time.monotonic() < until:
            answer = next(self._ends)
            if answer is not None:
                return {"done": True, **answer}
        return {"done": False}

    def _commit(self, request: Dict[str, Any]) -> Iterator[Optional[Dict[str, Any]]]:
        self._unchanged_owner()
        self._compare.keep_what_is_agreed()
        self._index.set_meta("next_id", self._index.meta["next_id"])
        self._index.db.execute("COMMIT")
        self._write_index()
        faults.point("seeded")
        session = {name: self._request[name] for name in ("session", "volume")}
        served = int((self._owner or {}).get("epoch", 0))
        agent = owner.open_agent(
            os.dup(self._root_fd), {**session}, {**session, "epoch": served}, Powers(), True
        )
        agent.read_only = False
        try:
            displaced, errors = 0, []
            after = 0
            while portion := self._compare.aside(after):
                after = portion[-1][0]
                with agent.transaction(check_epoch=False):
                    for _, parent, name, ino in portion:
                        faults.point("aside")
                        error = _displace(agent, parent, name, ino)
                        displaced += error == ""
                        if error:
                            errors.append([path_of(self._index, (parent, name)), error])
                yield None
            moved = []
            for path in self._compare.moved():
                if path is None:
                    yield None
                else:
                    moved.append(path)
            if moved:
                raise AgentError(
                    "busy",
                    "{} files were written to while they were compared; have it hold still, and run it again".format(
                        len(moved)
                    ),
                    moved[0],
                )
            with agent.transaction(check_epoch=False):
                agent.index.set_meta("epoch", served + 1)
            syncfs(agent.tree.root_fd)
            faults.point("unowned")
            self._unchanged_owner()
            term = {"term": self._request["term"], "of": request.get("of")}
            owner.write_owner(agent.tree.hidden_fd, {**session, "epoch": served + 1, "holder": None, **term})
            syncfs(agent.tree.root_fd)
        finally:
            agent.close()
        yield {"displaced": displaced, "errors": errors[:_SHOWN]}

    def _unchanged_owner(self) -> None:
        """Somebody may have thought for long, and somebody else have been quicker. Raises AgentError."""
        if owner.read_owner(self._root_fd) != self._owner:
            raise AgentError("busy", "somebody else made something of it meanwhile: look again")

    def _write_index(self) -> None:
        """In the place of one that there may be, of an earlier life."""
        hidden_fd = owner.our_directories(self._root_fd)
        owner.retire_index(hidden_fd)
        aside = b"index.seeded"
        try:
            os.unlink(aside, dir_fd=hidden_fd)
        except FileNotFoundError:
            pass
        self._index.db.execute(sql.DROP_INDEX_INO)
        self._index.db.execute("VACUUM INTO ?", ("/proc/self/fd/{}/{}".format(hidden_fd, aside.decode()),))
        os.rename(aside, layout.INDEX, src_dir_fd=hidden_fd, dst_dir_fd=hidden_fd)
        os.close(hidden_fd)


def _displace(agent: Agent, parent: int, name: bytes, ino: int) -> Optional[str]:
    """Empty: done; None: it is not there any more; else why it stays where it is, and is nobody's."""
    try:
        standing = agent.namespace.standing((parent, name))
        if standing is None or standing.st_ino != ino:
            return None
        agent.namespace.displacer.displace((parent, name))
    except OSError as error:
        return error.strerror or str(error)
    return ""


STEPS: Dict[str, Callable[[Seeding, Dict[str, Any]], Dict[str, Any]]] = {
    "seed_rows": Seeding.rows, "seed_compare": Seeding.compare, "seed_unproven": Seeding.unproven,
    "seed_prove": Seeding.prove, "seed_findings": Seeding.findings, "seed_commit": Seeding.commit,
}  # fmt: skip
