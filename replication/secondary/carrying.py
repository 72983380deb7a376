"""Carrying out plans of one request: steps in the tree, then rows and names in the index."""

from __future__ import annotations

import errno
from typing import Any, Dict, List, Optional, Set, Tuple

from replication.secondary import faults, held, sql
from replication.secondary.agent import Agent
from replication.secondary.along import Content, place_new
from replication.secondary.index import Key, Row
from replication.secondary.namespace import Namespace, Step
from replication.secondary.observed import Observed
from replication.secondary.protocol import code_of
from replication.secondary.reconcile import Plan


class Carrier:
    """Rows that one request works with, each of which is saved, and what comes of its plans. Within a transaction."""

    def __init__(
        self, agent: Agent, limbo_until: int, content: Content, rule: Optional[held.Rule] = None
    ) -> None:
        """``content``: what came along; it is placed with the first plan."""
        self.agent = agent
        self.index = agent.index
        self.limbo_until = limbo_until
        self.absent = held.Absences(agent, rule)
        self.rows: Dict[bytes, Row] = {}
        self.by_id: Dict[int, Row] = agent.tree.rows  # the same by their ids
        self.observed: Dict[bytes, Tuple[Observed, Row, Optional[Key]]] = {}
        self.placed: Set[bytes] = set()  # what has its content by now
        self.list: Dict[str, None] = {g.hex(): None for g in agent.healed}
        self.unknown: List[str] = []
        self.errors: List[List[Any]] = []
        self.kept: List[List[str]] = []
        self.stale: Set[int] = set()  # directories whose digest is out of date
        self._content = content
        self.ticket = 0  # the number of this look, once it was needed

    def this_look(self) -> int:
        """Its number: content that was read for an earlier one is out of date (receiver.place)."""
        if not self.ticket:
            self.ticket = int(self.index.meta.get("ticket") or 1) + 1
            self.index.set_meta("ticket", self.ticket)
        return self.ticket

    def carry_out(self, plan: Plan) -> None:
        """Do what a plan says, in the tree and in the index."""
        self._let_go(plan.adrift())
        plan.make(self.limbo_until)
        self.kept += plan.kept_names()
        self.absent.note(plan)
        namespace = self.agent.namespace
        for bare in namespace.shadows.of(plan.bare()):
            namespace.shadows.lift(bare)
        for key in plan.astray:
            namespace.displace_astray(key)
        if plan.steps:
            self.agent.announce(plan.journal, [])
            for row, error, key in _run(namespace, plan.steps):
                path = self.agent.tree.path(key).decode("utf-8", "surrogateescape")
                message = "cannot make it here: {}".format(error.strerror)
                self.errors.append([row.gfid.hex(), code_of(error), message, path])
        if self._content and not self.agent.rebuilding:
            content, self._content = self._content, {}
            self.placed = place_new(self.agent, plan, content, self.this_look())
        self._save(plan.add, plan.drop)
        namespace.forget_lost({(parent, name) for parent, name, _ in plan.add})
        self.index.db.executemany(sql.SAVE_DEPARTED, plan.departed)
        namespace.shadows.forget(key for key, row in plan.taken.items() if row.ino)
        self.stale |= plan.parents
        self._drop_rows(plan)
        for row in plan.from_limbo:
            if row.is_dir and row.ino:
                self._unlist_below(row)
        for inode in plan.relist:
            self._relist(inode)

    def finish(self) -> None:
        """What was changed meanwhile is saved."""
        self._save([], [])
        self.index.reset_digests(self.stale)

    def _let_go(self, rows: List[Row]) -> None:
        """What no name stands for is not known here, nor is what was seen in it: it is looked for again."""
        for row in rows:
            self._forget(row)
            if row.is_dir:
                self.unknown.append(row.gfid.hex())

    def _drop_rows(self, plan: Plan) -> None:
        """Inodes without name and object: a file that never had data, or whose object was taken away."""
        gone = list(plan.dropped)
        gone += [s.row for s in plan.steps if s.kind == "limbo" and not s.row.ino and s.row.limbo is not None]
        for row in gone:
            self._forget(row)
        self.index.drop(gone)

    def _forget(self, row: Row) -> None:
        self.rows.pop(row.gfid, None)
        self.by_id.pop(row.id, None)
        self.observed.pop(row.gfid, None)

    def _unlist_below(self, row: Row) -> None:
        self.index.db.execute(sql.UNLIST_BELOW, (row.id,))
        for (inode,) in self.index.db.execute(sql.DIRECTORIES_BELOW, (row.id,)):
            known = self.by_id.get(inode)
            if known is not None:
                known.listed, known.digest = 0, None

    def _relist(self, inode: int) -> None:
        row = self.agent.tree.row(inode)
        if row is not None:
            self.index.db.execute(sql.UNLIST, (row.gfid,))
            row.listed, row.digest = 0, None
            self.list[row.gfid.hex()] = None

    def _save(self, add: List[Tuple[int, bytes, int]], drop: List[Key]) -> None:
        self.index.save(self.rows.values(), add, drop)
        self.absent.dropped(drop)


def _run(namespace: Namespace, steps: List[Step]) -> List[Any]:
    """Carry out a plan, in order. Returns [row, code, message, path] of objects that could not be made.

    Raises OSError for whatever concerns more than one object.
    """
    errors: List[Any] = []
    for step in steps:
        row = step.row
        faults.point("step")
        if step.kind == "unlink":
            namespace.unlink(row, step.key)
        elif step.kind == "leave":
            namespace.leave(row, step.key)
        elif step.kind == "limbo":
            if row.ino:
                namespace.to_limbo(row, step.key, step.stay)
        elif step.kind == "forsake":
            namespace.forsake(row)
        elif step.kind == "create":
            _create(namespace, step, errors)
        elif not row.ino:
            # Lost on the way here: what can be made is made again, content is asked for.
            if not row.is_file:
                _create(namespace, step, errors)
        elif step.kind == "place":
            if not namespace.place(row, step.source, step.key, step.stay) and not row.is_file:
                _create(namespace, step, errors)
        elif not namespace.link(row, step.source or step.key, step.key) and not row.is_file:
            _create(namespace, step, errors)
    return errors


def _create(namespace: Namespace, step: Step, errors: List[Any]) -> None:
    try:
        namespace.create(step.row, step.key, step.target)
    except OSError as error:
        if step.row.is_dir or error.errno not in (
            errno.EPERM,
            errno.EACCES,
            errno.EINVAL,
            errno.ENAMETOOLONG,
            errno.EAGAIN,  # another agent is making it (gfids.py)
        ):
            raise
        errors.append((step.row, error, step.key))
