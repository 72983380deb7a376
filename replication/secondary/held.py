"""Deletions that are held: the primary has these names no more, and they go on standing here.

Two rules hold them. With *ignore* for ever. With a *limit*, when one request would take away so many names that,
with those of the time before it, they are more than the limit: then it takes away none. A rename may look like
that until its new name is observed, and then nothing is held any more. What is held still when the front has passed
the look (limbo.py) is gone from the primary for good. Then a person is asked, or, if it is few enough by then, it goes.

held      names that stand here, and not there; ``since`` NULL: by the rule *ignore*
removed   what was taken away under a limit, to be counted; ``amount`` 0: a directory that another object replaced
"""

from __future__ import annotations

import math
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from replication.secondary import sql
from replication.secondary.agent import Agent
from replication.secondary.index import Key
from replication.secondary.observed import GFID, NAME, Observed
from replication.secondary.protocol import AgentError
from replication.secondary.reconcile import Plan

_FEW = 10  # names that a limit in percent allows always: of a handful of files each one is a lot
_CENSUS_S = 60.0  # how long a count of all objects is good enough
_COUNTED = 1_000_000  # of what is held: beyond that "more than" will do
_SHOWN = 5

Gone = List[Tuple[Key, int]]  # names that are absent now, and what each stands for here


class Rule:
    """What a request says of deletions. ``since``: when the earliest of what it tells of happened, ns."""

    def __init__(self, said: Dict[str, Any]) -> None:
        self.ignore = bool(said.get("ignore"))
        self.most = None if said.get("most") is None else int(said["most"])
        self.percent = None if said.get("percent") is None else float(said["percent"])
        self.window_s = float(said.get("window_s") or 0)
        self.since = int(said.get("since") or 0)
        self.allowed_ns = int(said.get("allowed_ns") or 0)  # what was gone by then, a person has agreed to
        if not self.ignore and (self.most is None) == (self.percent is None):
            raise AgentError(
                "protocol", "a rule of deletions is to ignore them, or a number, or a percentage"
            )

    @classmethod
    def of(cls, request: Dict[str, Any]) -> Optional[Rule]:
        said = request.get("deletes")
        return None if said is None else cls(said)


class Absences:
    """Names of one request that are absent, and what becomes of them. ``holds``: some names are held."""

    def __init__(self, agent: Agent, rule: Optional[Rule]) -> None:
        self._agent = agent
        self._rule = rule
        self._gone: Dict[Key, int] = {}  # where a rule says which of them go
        self.holds = agent.index.holds()
        agent.leaves_others = rule is not None and rule.ignore

    def add(self, plan: Plan, key: Key, current: Optional[int]) -> None:
        if self._rule is None or current is None:
            plan.absent(key, current)
        else:
            plan.absent(key, None)  # whatever was seen there before it was looked at again
            self._gone[key] = current

    def there(self, parent: int, entries: List[Observed]) -> None:
        """What of these is present was looked at again after it was absent."""
        if self._gone:
            for e in entries:
                if e[GFID] is not None:
                    self._gone.pop((parent, e[NAME]), None)

    def sort_out(self, plan: Plan, stamp: int) -> List[bytes]:
        """Have them removed, or held: the names that are held."""
        if self._rule is None:
            return []
        gone, self._gone = list(self._gone.items()), {}
        coming = {plan.rows[e[GFID]].id for e in plan.wanted.values() if e is not None}
        going = sort_out(self._agent, self._rule, gone, coming, stamp)
        for key, current in going:
            plan.absent(key, current)
        self.holds = self.holds or len(going) < len(gone)
        known = {key for key, _ in going}
        return [key[1] for key, _ in gone if key not in known]

    def dropped(self, keys: List[Key]) -> None:
        """These names are gone from here, by whatever way."""
        if self.holds and keys:
            release(self._agent, keys)

    def note(self, plan: Plan) -> None:
        """What a plan takes away and brings back is counted under a rule."""
        if self._rule is None:
            return
        come_back(self._agent, list(plan.taken), [row.id for row in plan.from_limbo])
        for step in plan.steps:
            row = step.row
            if step.kind == "limbo" and row.is_dir and step.key in plan.taken and row.limbo is not None:
                replaced(self._agent, row.id, step.key)


def limit(agent: Agent, rule: Rule) -> int:
    """How many names may go within the window. Of all objects, where it is a percentage."""
    if rule.percent is None:
        return rule.most or 0
    at, count = agent.census
    if time.monotonic() - at > _CENSUS_S:
        count = agent.index.db.execute(sql.COUNT_INODES).fetchone()[0]
        agent.census = (time.monotonic(), count)
    return max(_FEW, math.ceil(count * rule.percent / 100))


def sort_out(agent: Agent, rule: Rule, gone: Gone, coming: Set[int], stamp: int) -> Gone:
    """Of names that are absent now, those that are to be removed; the others are held. Within a transaction.

    ``coming``: inodes that get a name elsewhere by the same request, which renames them.
    """
    rows = agent.index.inodes_by_id({inode for _, inode in gone})
    deleted = [
        (key, inode)
        for key, inode in gone
        if inode not in coming and inode in rows and (rows[inode].ino or rows[inode].is_dir)
    ]
    if not deleted:
        return gone
    if not rule.ignore and not agent.index.meta.get("asked"):
        room = limit(agent, rule) - already(agent, rule)
        amounts = weigh(agent, deleted, {key for key, _ in gone}, room)
        if sum(amounts) <= room:
            note(agent, deleted, amounts)
            return gone
    keep = {key for key, _ in deleted}
    since = None if rule.ignore else rule.since
    db = agent.index.db
    db.executemany(sql.HOLD, [(*key, inode, stamp, since) for key, inode in deleted])
    # Nobody will send what they lack: there is nothing to read it from.
    db.executemany(sql.WANT_NOTHING, [(inode,) for _, inode in deleted])
    agent.index.reset_digests({key[0] for key in keep})
    return [(key, inode) for key, inode in gone if key not in keep]


def weigh(agent: Agent, deleted: Gone, gone: Set[Key], room: int) -> List[int]:
    """For each name: 1, and of a directory every name below that is not itself among ``gone``. Not beyond ``room``."""
    rows = agent.index.inodes_by_id({inode for _, inode in deleted})
    amounts = []
    left = room
    for _, inode in deleted:
        amount = 1
        pending = [inode] if rows[inode].is_dir else []
        while pending and amount <= left:
            directory = pending.pop()
            names = agent.index.entries_of(directory, left - amount + len(gone) + 1)
            below = [child for name, child in names.items() if (directory, name) not in gone]
            amount += len(below)
            pending += agent.index.directories_among(below)
        left -= amount
        amounts.append(amount)
        if left < 0:
            break
    return amounts


def already(agent: Agent, rule: Rule) -> int:
    """How many names went within the window, and did not come back."""
    db = agent.index.db
    db.execute(sql.FORGET_REMOVED, (time.time_ns() - int(rule.window_s * 1e9),))
    return int(db.execute(sql.COUNT_REMOVED).fetchone()[0])


def note(agent: Agent, deleted: Gone, amounts: List[int]) -> None:
    """These are taken away now."""
    now = time.time_ns()
    rows = [(inode, agent.tree.path(key), n, now) for (key, inode), n in zip(deleted, amounts)]
    agent.index.db.executemany(sql.NOTE_REMOVED, rows)


def come_back(agent: Agent, keys: List[Key], inodes: List[int]) -> None:
    """Names that are used again, and inodes that came out of limbo, count no more."""
    db = agent.index.db
    if db.execute(sql.ANY_REMOVED).fetchone() is None:
        return
    db.executemany(sql.BACK_IN_PATH, [(agent.tree.path(key),) for key in keys])
    db.executemany(sql.BACK_BY_INODE, [(inode,) for inode in inodes])


def replaced(agent: Agent, inode: int, key: Key) -> None:
    """A directory goes to limbo because its name is another's now: with all in it, if nobody asks for it any more."""
    path = agent.tree.path(key)
    agent.index.db.execute(sql.NOTE_REMOVED, (inode, path, 0, time.time_ns()))


def present(agent: Agent, keys: List[Key]) -> None:
    """These names are on the primary. Those of them that were held are not any more."""
    db = agent.index.db
    for key in keys:
        if db.execute(sql.RELEASE, key).rowcount:
            agent.index.reset_digests([key[0]])


def release(agent: Agent, keys: List[Key]) -> None:
    """These names are gone from here, by whatever way."""
    agent.index.db.executemany(sql.RELEASE, keys)


def due(agent: Agent, rule: Optional[Rule], upto: int, most: int) -> Gone:
    """Held names that may go now: up to ``most`` of them. Within a transaction.

    ``upto``: what was looked at until then is gone for good. A person is asked when they are too many.
    """
    if rule is not None and rule.ignore:
        agent.index.db.execute(sql.IGNORE_HELD)
        agent.index.set_meta("asked", None)
        return []
    agreed = upto if rule is None else min(upto, rule.allowed_ns)
    found = _pending(agent, agreed, most)
    if found or rule is None:
        agent.index.set_meta("asked", None)
        agent.index.db.execute(sql.FORGET_REMOVED, (time.time_ns(),))  # it was agreed to as well
        return found
    found = _pending(agent, upto, most)
    if not found:
        agent.index.db.execute(sql.DROP_STALE_HELD)
        if not agent.index.holds():
            agent.index.set_meta("asked", None)
        return []
    if agent.index.meta.get("asked"):
        return []
    many = agent.index.db.execute(sql.COUNT_HELD, (upto, _COUNTED)).fetchone()[0]
    if many + already(agent, rule) > limit(agent, rule):
        agent.index.set_meta("asked", 1)
        return []
    note(agent, found, weigh(agent, found, {key for key, _ in found}, many))
    return found


def _pending(agent: Agent, upto: int, most: int) -> Gone:
    return [((p, n), i) for p, n, i in agent.index.db.execute(sql.HELD, (upto, most))]


def question(agent: Agent, rule: Optional[Rule], upto: int) -> Optional[Dict[str, Any]]:
    """What a person is asked, None when nothing. ``count``: names, those below directories too."""
    if rule is None or rule.ignore or not agent.index.meta.get("asked"):
        return None
    db = agent.index.db
    count = db.execute(sql.COUNT_HELD, (upto, _COUNTED)).fetchone()[0]
    names = [_text(agent.tree.path((p, n))) for p, n, _ in db.execute(sql.HELD, (upto, _SHOWN))]
    return {"count": count, "most": limit(agent, rule), "names": names}


def since(agent: Agent) -> Optional[int]:
    """When the earliest of what is held, and not ignored, happened."""
    found: Optional[int] = agent.index.db.execute(sql.HELD_SINCE).fetchone()[0]
    return found


def held(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """The operation `held`: names that are held, [path, stamp, whether they are ignored] each."""
    agent.tree.begin()
    limit_ = int(request.get("limit") or 1000)
    rows = agent.index.db.execute(sql.ALL_HELD, (limit_,)).fetchall()
    items = [[_text(agent.tree.path((p, n))), stamp, ignored is None] for p, n, stamp, ignored in rows]
    count = agent.index.db.execute(sql.COUNT_HELD, (1 << 62, _COUNTED)).fetchone()[0]
    return {"items": items, "count": count, "asked": bool(agent.index.meta.get("asked"))}


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
