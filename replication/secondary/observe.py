"""The operation `observe`: a set of observations, in one transaction."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from replication.secondary import adopt, excluded, held, parts, sql
from replication.secondary.admission import admit
from replication.secondary.agent import Agent
from replication.secondary.along import Content
from replication.secondary.carrying import Carrier
from replication.secondary.index import UNCERTAIN, Key, Row
from replication.secondary.metadata import apply_at, dress_directory
from replication.secondary.namespace import limbo_name
from replication.secondary.observed import (
    ATIME,
    CHANGE,
    CHANGE_DATA,
    CHANGE_EMPTY,
    CTIME,
    GFID,
    GID,
    MODE,
    MTIME,
    NAME,
    UID,
    Listing,
    Observed,
    parse,
)  # fmt: skip
from replication.secondary.protocol import AgentError, code_of
from replication.secondary.reconcile import Plan, how_wanted, new_row, same_attributes, unchanged

# Entries of one directory that are compared in memory; larger ones go through the table of seen names.
_IN_MEMORY = 20_000
_REMOVALS = 2_000  # names removed per plan, from a directory of any size


def observe(agent: Agent, request: Dict[str, Any], content: Content) -> Dict[str, Any]:
    """See docs/formats.md. ``content``: what came along and is written aside, by gfid. Raises AgentError, OSError, sqlite3.Error; then nothing was applied."""
    listings = request.get("parsed")
    if listings is None:  # a second try, after a lost directory was mended, has them already
        listings = request["parsed"] = parse(request["listings"])
    before = dict(agent.parts)
    try:
        answer = _apply(agent, request, listings, content)
    except BaseException:
        agent.parts = before
        raise
    agent.healed.clear()
    return answer


def take_away(agent: Agent, names: held.Gone, stamp: int) -> None:
    """Remove names whose removal was held. Within a transaction."""
    work = Carrier(agent, stamp, {})
    plan = Plan(work.index, work.rows, work.by_id)
    for key, inode in names:
        plan.absent(key, inode)
    work.carry_out(plan)
    work.finish()


def _apply(
    agent: Agent, request: Dict[str, Any], listings: List[Listing], content: Content
) -> Dict[str, Any]:
    with agent.transaction():
        admit(agent, request)
        work = _Work(agent, int(request["limbo_until"]), content, held.Rule.of(request))
        work.apply(listings)
        if request.get("position") is not None:
            key = "applied" if request.get("final", True) else "current"
            agent.index.set_meta(key, request["position"])
        return work.answer()


class _Work(Carrier):
    """One request under way."""

    def __init__(self, agent: Agent, limbo_until: int, content: Content, rule: Optional[held.Rule]) -> None:
        super().__init__(agent, limbo_until, content, rule)
        self.need: Dict[bytes, str] = {}
        self.meta: List[str] = []
        self._ids: Iterator[int] = iter(())
        self._unseen: List[Tuple[Row, Listing]] = []
        self._left_out: List[Tuple[Key, int]] = []
        self._born: Set[bytes] = set()  # directories unknown until now that need not be listed

    # ---- taking in

    def apply(self, listings: List[Listing]) -> None:
        plan = Plan(self.index, self.rows, self.by_id)
        self._load(listings)
        ordered, unknown = parts.parents_first(listings, self.rows)
        self.unknown += unknown
        for listing in ordered:
            self._take(plan, listing)
        self._end_plan(plan)
        for row, listing in self._unseen:
            if row.gfid in self.rows:
                self._remove_unseen(row, listing)
        for g, (e, row, key) in self.observed.items():
            if g not in self.placed:
                self._state(g, e, row, key)
        self.finish()

    def _load(self, listings: List[Listing]) -> None:
        gfids = {e[GFID] for listing in listings for e in listing.entries}
        gfids.update(listing.parent for listing in listings)
        gfids.discard(None)
        self.rows.update(self.index.inodes(gfids))
        for row in self.rows.values():
            self.by_id[row.id] = row
        amount = len(gfids) - len(self.rows)
        first = self.index.take_ids(amount) if amount > 0 else 0
        self._ids = iter(range(first, first + amount))

    def _take(self, plan: Plan, listing: Listing) -> None:
        parent = self.rows[listing.parent]
        pid = parent.id
        if self.agent.rebuilding:
            adopt.adopt(self.agent, self.rows, parent, listing, self._new)
        known, all_known = self._known(parent, listing)
        self.absent.there(pid, listing.entries)
        rows, observed = self.rows, self.observed
        present = plan.present
        for e in listing.entries:
            name = e[NAME]
            key = (pid, name)
            g = e[GFID]
            if g is None:
                self.absent.add(plan, key, known.get(name))
                continue
            row = rows.get(g)
            if row is None:
                row = self._new(e)
            elif (row.mode ^ e[MODE]) & 0o170000:
                raise AgentError("protocol", "an inode changed its type", name.decode("utf-8", "replace"))
            if g in observed and observed[g][0][CHANGE] == CHANGE_DATA:
                # Who meets it in a listing, or by another name, knows nothing of that.
                e[CHANGE] = CHANGE_DATA
            observed[g] = (e, row, key)
            present(key, known.get(name), row, e)
        if self.absent.holds:
            held.present(self.agent, [(pid, e[NAME]) for e in listing.entries if e[GFID] is not None])
        for e in listing.own:
            observed[listing.parent] = (e, parent, None)
        if listing.complete and listing.last:
            if all_known:
                listed = {e[NAME] for e in listing.entries}
                gone = {name: current for name, current in known.items() if name not in listed}
                self._gone(plan, pid, gone)
                self._listed(parent)
            else:
                self._unseen.append((parent, listing))

    def _gone(self, plan: Plan, parent: int, names: Dict[bytes, int]) -> None:
        """A complete listing does not have these: they are absent, or left out by the filters."""
        left_out = excluded.left_out(self.agent, parent, names)
        self._left_out += left_out
        for (_, name), _ in left_out:
            del names[name]
        for name, current in names.items():
            self.absent.add(plan, (parent, name), current)

    def _end_plan(self, plan: Plan) -> List[bytes]:
        """All was taken in: carry it out. Gives the names that are held."""
        # What is left out is forgotten, but for inodes that were observed under another name, which move there.
        left_out, self._left_out = self._left_out, []
        observed = {row.id for _, row, _ in self.observed.values()} if left_out else ()
        for key, inode in left_out:
            if inode in observed:
                self.absent.add(plan, key, inode)
        stay = self.absent.sort_out(plan, self.limbo_until)
        self.carry_out(plan)
        excluded.forget(self.agent, [each for each in left_out if each[1] not in observed])
        return stay

    def _new(self, e: Observed) -> Row:
        row = new_row(next(self._ids, 0) or self.index.take_ids(1), e)
        row.gen = self.index.meta.get("gen", 0)
        if row.dirty:
            row.dirty = self.this_look()
        self.rows[row.gfid] = row
        self.by_id[row.id] = row
        if e[CHANGE] == CHANGE_EMPTY and not self.agent.rebuilding:
            self._born.add(row.gfid)
        return row

    def _known(self, parent: Row, listing: Listing) -> Tuple[Dict[bytes, int], bool]:
        """Entries of the directory in the index: those observed, or (True) all of them."""
        if parent.new:
            known: Dict[bytes, int] = {}
            whole = True
        elif listing.complete and listing.last and listing.part == 0:
            known = self.index.entries_of(parent.id, _IN_MEMORY)
            whole = len(known) < _IN_MEMORY
        else:
            whole = False
        if not whole:
            known = self.index.entries(parent.id, [e[NAME] for e in listing.entries])
        if listing.part or not listing.last or (listing.complete and not whole):
            parts.note_seen(self.agent, parent, listing)
            whole = False
        return known, whole and listing.complete

    def _remove_unseen(self, parent: Row, listing: Listing) -> None:
        """The last part came: names that no part had are gone. In portions, so that memory stays bounded."""
        while True:
            names = [n for (n,) in self.index.db.execute(sql.UNSEEN, (parent.id, _REMOVALS))]
            if not names:
                break
            before = set(self.rows)
            plan = Plan(self.index, self.rows, self.by_id)
            self._gone(plan, parent.id, self.index.entries(parent.id, names))
            stay = self._end_plan(plan)
            self.index.db.executemany(sql.ADD_SEEN, [(parent.id, name) for name in stay])
            for gfid in [g for g in self.rows if g not in before]:
                self.by_id.pop(self.rows.pop(gfid).id, None)
        if self.agent.rebuilding:
            adopt.displace_unseen(self.agent, parent)
        self.index.db.execute(sql.FORGET_SEEN, (parent.id,))
        self._listed(parent)

    def _listed(self, row: Row) -> None:
        if not row.listed:
            row.listed = 1
            row.changed = True

    # ---- the state of each inode

    def _state(self, g: bytes, e: Observed, row: Row, key: Optional[Key]) -> None:
        if row.is_dir and not row.listed:
            if g in self._born and row.ino:
                row.listed, row.changed = 1, True
            else:
                self.list[g.hex()] = None
        # A store through mmap into a page that is dirty already moves no time: what says D is compared.
        if unchanged(row, e) and e[CHANGE] != CHANGE_DATA:
            return
        if row.is_file:
            how = how_wanted(row, e)
            if how is not None:
                if not row.dirty:
                    self._stale_parents(row, key)
                if row.dirty != self.this_look():
                    row.dirty = self.this_look()
                    row.changed = True
                self.need[g] = how
                if how == "new":
                    self._remember(row, e)
                    return
        if row.ino and not self._dress(row, e, key):
            return
        if g not in self.need and row.ino:
            self.meta.append(g.hex())
            self._stale_parents(row, key)
            # The metadata of a file that comes must be of this very state. Should whoever is told of it be killed, it is known by this.
            if row.pctime != (awaited := -e[CTIME] or UNCERTAIN):
                row.pctime, row.changed = awaited, True

    def _remember(self, row: Row, e: Observed) -> None:
        if not same_attributes(row, e):
            row.mode, row.uid, row.gid = e[MODE], e[UID], e[GID]
            row.changed = True

    def _stale_parents(self, row: Row, key: Optional[Key]) -> None:
        if key is not None:
            self.stale.add(key[0])

    def _dress(self, row: Row, e: Observed, key: Optional[Key]) -> bool:
        """Owner, mode and times of what exists, at once. False: it was lost, or refuses."""
        times = (row.mtime, row.atime) != (e[MTIME], e[ATIME]) and e[GFID] not in self.need
        if same_attributes(row, e) and not times:
            return True
        mode_too = not same_attributes(row, e)
        row.changed = True
        old = (row.mode, row.uid, row.gid)
        row.mode, row.uid, row.gid = e[MODE], e[UID], e[GID]
        if times:
            row.mtime, row.atime = e[MTIME], e[ATIME]
        try:
            self._apply(row, key, mode_too, times)
        except OSError as error:
            row.mode, row.uid, row.gid = old
            row.pctime = 0
            self.errors.append([row.gfid.hex(), code_of(error), error.strerror or str(error), None])
            return False
        return True

    def _apply(self, row: Row, key: Optional[Key], mode_too: bool, times: bool) -> None:
        tree, namespace = self.agent.tree, self.agent.namespace
        if row.is_dir:
            # Times come when the transaction settles.
            fd = tree.fd(row.id)
            if mode_too:
                dress_directory(fd, row, self.agent.powers)
            tree.touched.setdefault(row.id, mode_too)
            return
        assert key is not None
        # It may have moved while it was looked at, and not have the name here at which it was seen last.
        names = [key] if self.index.entry(*key) == row.id else self.index.names_of(row.id)
        if not names and namespace.in_limbo(row):
            apply_at(tree.limbo_fd, limbo_name(row), row, row, self.agent.powers, None, times)
        elif not names:
            namespace.lose(row)
            self.index.drop([self.rows.pop(row.gfid)])
        elif namespace.is_ours(row, names[0]):
            apply_at(tree.fd(names[0][0]), names[0][1], row, row, self.agent.powers, None, times)
        else:
            namespace.lose(row)
            if row.is_file:
                self.need[row.gfid] = "new"

    def answer(self) -> Dict[str, Any]:
        return {
            "need": [[g.hex(), how] for g, how in self.need.items()],
            "ticket": self.ticket,
            "meta": self.meta,
            "list": list(self.list),
            "unknown": self.unknown,
            "errors": self.errors,
            "rebuilding": self.agent.rebuilding,
            "counts": self.agent.namespace.all_counts(),
            "placed": self.placed,
            "kept": self.kept,
        }
