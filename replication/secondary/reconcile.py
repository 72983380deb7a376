"""What must be done so that the index, and the tree with it, agree with a set of observations.

Planning only: it reads the index, changes rows in memory, and gives steps. The rules:
an inode that keeps a name gains and loses others by link and unlink; one that loses all and gains one is
renamed; one that loses all goes to limbo; a directory, and a file whose link count is 1, has one name.
Names are freed first; then directories come before what they hold; a name that is still the source of a
later rename is freed through limbo, which unties swaps and cycles. A name that goes from one object to another,
neither of them a directory, is not freed: what stands there stays as its shadow (shadows.py) until it is replaced.
A file that is still empty here comes to a new name with its content, and not before.
"""

from __future__ import annotations

import os
import stat
from typing import Dict, List, Optional, Set, Tuple

from replication.secondary.index import Index, Key, Row
from replication.secondary.namespace import Step
from replication.secondary.observed import (
    ATIME,
    CHANGE,
    CHANGE_DATA,
    CHANGE_UNKNOWN,
    CTIME,
    GFID,
    GID,
    INO,
    MODE,
    MTIME,
    NLINK,
    RDEV,
    SIZE,
    TARGET,
    UID,
    Observed,
)  # fmt: skip
from replication.secondary.protocol import AgentError


class Plan:
    """Wanted names, what they were, and the steps between. One use for one set of names."""

    def __init__(self, index: Index, rows: Dict[bytes, Row], by_id: Dict[int, Row]) -> None:
        self.index = index
        self.rows = rows
        self.by_id = by_id
        self.wanted: Dict[Key, Optional[Observed]] = {}
        self.current: Dict[Key, Optional[int]] = {}
        self.directory_at: Dict[bytes, Key] = {}
        self.retry: List[Tuple[Row, Key, Observed]] = []
        self.steps: List[Step] = []
        self.journal: List[Tuple[Row, List[Key]]] = []
        self.add: List[Tuple[int, bytes, int]] = []
        self.drop: List[Key] = []
        self.dropped: List[Row] = []  # rows without a name that nothing stands for
        self.departed: List[Tuple[int, int, bytes]] = []  # what goes to limbo, and its last name
        self.from_limbo: List[Row] = []
        self.relist: List[int] = []  # directories that must be listed again
        self.parents: Set[int] = set()  # directories whose names change
        self.taken: Dict[Key, Row] = {}  # what each name that comes stands for
        self.kept: List[Tuple[Row, Key]] = []  # files that lose a name, and have others
        self.astray: List[Key] = []  # names whose inode the index has lost: whatever stands there is nobody's
        self._names: Dict[int, List[Key]] = {}
        self._gone: Dict[int, List[Key]] = {}
        self._come: Dict[int, List[Tuple[Key, Observed]]] = {}

    # ---- taking in observations

    def absent(self, key: Key, current: Optional[int]) -> None:
        if current is None:
            self.wanted.pop(key, None)
        else:
            self.wanted[key] = None
            self.current[key] = current

    def present(self, key: Key, current: Optional[int], row: Row, e: Observed) -> None:
        if row.is_dir:
            before = self.directory_at.get(row.gfid)
            if before is not None and before != key and before in self.wanted:
                self.absent(before, self.current.get(before))
            self.directory_at[row.gfid] = key
        if current == row.id:
            self.wanted.pop(key, None)
            if not row.ino and not row.is_file:
                self.retry.append((row, key, e))
        else:
            self.wanted[key] = e
            self.current[key] = current

    def adrift(self) -> List[Row]:
        """New inodes for which no name is left, as it was another's when it was looked at again; directories with all that was seen in them."""
        found: Dict[bytes, Row] = {}
        while True:
            named = {e[GFID] for e in self.wanted.values() if e is not None}.union(found)
            rows = {g: row for g, row in self.rows.items() if row.new and g not in named}
            if not rows:
                return list(found.values())
            found.update(rows)
            ids = {row.id for row in rows.values()}
            self.wanted = {key: e for key, e in self.wanted.items() if key[0] not in ids}

    # ---- planning

    def make(self, limbo_until: int) -> None:
        """Turn what is wanted into steps, and into changes of entries."""
        if not self.wanted and not self.retry:
            return
        self._sort_out()
        self._load()
        self._one_name_only()
        self._break_cycles()
        self.taken = {(parent, name): self.by_id[inode] for parent, name, inode in self.add}
        attaches = self._detach(limbo_until)
        self._order(attaches)
        for row, key, e in self.retry:
            self.steps.append(Step("create", row, key, target=e[TARGET]))
            self.journal.append((row, [key]))

    def _sort_out(self) -> None:
        rows = self.rows
        for key, e in self.wanted.items():
            current = self.current[key]
            self.parents.add(key[0])
            if current is not None:
                self._gone.setdefault(current, []).append(key)
            if e is None:
                self.drop.append(key)
                continue
            row = rows[e[GFID]]
            self.add.append((key[0], key[1], row.id))
            # A new file with content needs no step: it appears with its content.
            if not row.new or not row.is_file or not e[SIZE]:
                self._come.setdefault(row.id, []).append((key, e))

    def _load(self) -> None:
        by_id = self.by_id
        missing = [i for i in self._gone if i not in by_id]
        if missing:
            for row in self.index.inodes_by_id(missing).values():
                by_id[row.id] = self.rows[row.gfid] = row
            for inode in missing:
                if inode not in by_id:
                    self.astray += self._gone.pop(inode)
        affected = set(self._gone) | {i for i in self._come if not by_id[i].new}
        if affected:
            self._names = self.index.names(affected)

    def _one_name_only(self) -> None:
        for inode, come in self._come.items():
            row = self.by_id[inode]
            if not row.is_dir and come[-1][1][NLINK] != 1:
                continue
            if len(come) > 1:
                # Seen at several names though it has one: it moved while we looked. The last look counts.
                for key, _ in come[:-1]:
                    self.add = [a for a in self.add if (a[0], a[1]) != key]
                    self.drop.append(key)
                del come[:-1]
            gone = self._gone.setdefault(inode, [])
            for key in self._names.get(inode, ()):
                if key not in gone and key != come[0][0]:
                    self._lose_name(inode, key)
            if not gone:
                del self._gone[inode]

    def _lose_name(self, inode: int, key: Key) -> None:
        self._gone.setdefault(inode, []).append(key)
        self.drop.append(key)
        self.parents.add(key[0])

    # ---- cycles

    def _break_cycles(self) -> None:
        """A directory would come below itself: some of what we believe is old. Let go of the oldest belief.

        The directory that is let go goes to limbo, and where it was is listed again.
        """
        coming = [i for i, come in self._come.items() if come and self.by_id[i].is_dir]
        for inode in coming:
            while self._come.get(inode):
                cut = self._cycle(inode)
                if cut is None:
                    break
                victim, key = cut
                if key is None and self.by_id[inode].new:
                    raise AgentError("io", "directories moved while they were observed; observe again")
                if key is None:
                    wanted = self._come.pop(inode)[0][0]
                    self.add = [a for a in self.add if (a[0], a[1]) != wanted]
                    self.drop.append(wanted)
                    self.relist.append(wanted[0])
                    if not self._gone.get(inode):
                        for name in self._names.get(inode, ()):
                            self._lose_name(inode, name)
                else:
                    self._names.setdefault(victim, [key])
                    self._lose_name(victim, key)
                    self.relist.append(key[0])

    def _cycle(self, inode: int) -> Optional[Tuple[int, Optional[Key]]]:
        """(directory to let go, its name in the index), or (inode, None): only what was observed now conflicts."""
        at: int = self._come[inode][0][0][0]
        first: Optional[Tuple[int, Key]] = None
        seen = set()
        while at != inode:
            if at in seen:
                return None  # a cycle that this one hangs below; met again at its members
            seen.add(at)
            come = self._come.get(at)
            if come:
                at = come[0][0][0]
                continue
            # Nothing that is in the index can hang below a directory which is only now created.
            if at in self._gone or self.by_id[inode].new:
                return None
            key = self._name_of(at)
            if key is None:
                return None
            if first is None:
                first = (at, key)
            at = key[0]
        return first if first is not None else (inode, None)

    def _name_of(self, inode: int) -> Optional[Key]:
        names = self._names.get(inode)
        if names is None:
            row = self.by_id.get(inode)
            if row is None:
                row = self.index.inode_by_id(inode)
                if row is None:
                    return None
                known = self.rows.setdefault(row.gfid, row)
                self.by_id[inode] = known
            names = self.index.names_of(inode)
            self._names[inode] = names
        return names[0] if names else None

    # ---- steps

    def _detach(self, limbo_until: int) -> Dict[int, List[Step]]:
        """Free names: unlinks and limbo. Returns what is to be attached, by inode, a rename or creation first."""
        attaches: Dict[int, List[Step]] = {}
        for inode in {**self._gone, **self._come}:
            row = self.by_id[inode]
            names = self._names.get(inode, [])
            gone = self._gone.get(inode, [])
            come = self._come.get(inode, [])
            keep = [k for k in names if k not in gone]
            stay = [k for k in gone if self._stays(row, k)]
            free = [k for k in gone if k not in stay]
            last = None if keep else next(iter(free + stay), None)
            if row.is_file and (keep or come):
                self.kept += [(row, k) for k in gone]
            if not row.ino:
                if come and row.limbo is not None:
                    row.limbo, row.changed = None, True
                if come and not (row.is_file and not row.new):
                    attaches[inode] = self._made(row, come)
                elif not keep and not come:
                    self.dropped.append(row)
                if not (come and row.new):
                    continue
            else:
                self.steps += [Step("unlink", row, k) for k in free if k != last]
                self.steps += [Step("leave", row, k) for k in stay if k != last]
                if keep:
                    attaches[inode] = [
                        Step("link", row, k, source=keep[0], target=e[TARGET]) for k, e in come
                    ]
                elif come and hollow(row, come[0][1]) and not self.index.keeps_inodes:
                    if last is not None:
                        self.steps.append(Step("leave" if last in stay else "unlink", row, last))
                    self.steps.append(Step("forsake", row, come[0][0]))
                elif come:
                    attaches[inode] = self._moved(row, last, come)
                else:
                    if last is not None:
                        self.steps.append(Step("limbo", row, last, stay=last in stay))
                        self.departed.append((row.id, *last))
                    row.limbo = limbo_until
                    row.changed = True
            self.journal.append((row, names + [k for k, _ in come]))
        return attaches

    def _stays(self, row: Row, key: Key) -> bool:
        """Whether what an inode has at a name that it loses can be replaced there by what comes."""
        taker = self.taken.get(key)
        return taker is not None and not row.is_dir and not taker.is_dir

    def bare(self) -> List[Key]:
        """Names at which nothing is to stand that could replace a shadow: they are absent now, or a directory's."""
        absent = [key for key in self.drop if key not in self.taken]
        return absent + [key for key, row in self.taken.items() if row.is_dir]

    def kept_names(self) -> List[List[str]]:
        """[gfid, parent's gfid, name] of each name that a file lost which has others; after ``make``."""
        found = []
        for row, (parent, name) in self.kept:
            directory = self.by_id.get(parent)
            if directory is not None:
                found.append([row.gfid.hex(), directory.gfid.hex(), os.fsdecode(name)])
        return found

    def _made(self, row: Row, come: List[Tuple[Key, Observed]]) -> List[Step]:
        first, e = come[0]
        steps = [Step("create", row, first, target=e[TARGET])]
        return steps + [Step("link", row, k, source=first, target=o[TARGET]) for k, o in come[1:]]

    def _moved(self, row: Row, source: Optional[Key], come: List[Tuple[Key, Observed]]) -> List[Step]:
        first, e = come[0]
        if row.limbo is not None:
            row.limbo = None
            row.changed = True
            self.from_limbo.append(row)
        stay = source is not None and self._stays(row, source)
        steps = [Step("place", row, first, source=source, target=e[TARGET], stay=stay)]
        return steps + [Step("link", row, k, source=first, target=o[TARGET]) for k, o in come[1:]]

    def _order(self, attaches: Dict[int, List[Step]]) -> None:
        moves = [s[0] for s in attaches.values() if s and s[0].kind == "place"]
        sources: Dict[Optional[Key], Step] = {s.source: s for s in moves if s.source is not None}
        done: Set[int] = set()
        for inode in attaches:
            chain = [inode]
            while chain:
                at = chain[-1]
                if at in done:
                    chain.pop()
                    continue
                waits = [p for p in {s.key[0] for s in attaches[at]} if p in attaches and p not in done]
                if waits:
                    chain += waits
                    continue
                done.add(at)
                chain.pop()
                for step in attaches[at]:
                    sources.pop(step.source, None)
                    blocker = sources.pop(step.key, None)
                    if blocker is not None:
                        self.steps.append(Step("limbo", blocker.row, step.key, stay=blocker.stay))
                        blocker.source = None
                    self.steps.append(step)


def new_row(inode: int, e: Observed) -> Row:
    """A row for what was not known until now."""
    mode = e[MODE]
    row = Row(inode, e[GFID], mode, e[UID], e[GID], 0, e[MTIME], e[ATIME], e[RDEV])
    if stat.S_ISREG(mode):
        if e[SIZE]:
            row.dirty = 1
    row.new = True
    return row


def unchanged(row: Row, e: Observed) -> bool:
    """Whether this very state of the inode is here completely."""
    return bool(
        row.pctime == e[CTIME] and row.pctime != 0 and row.pino == e[INO] and not row.dirty and row.ino != 0
    )


def hollow(row: Row, e: Observed) -> bool:
    """Whether a file was seen here while it was empty, and is not any more.

    Moved as it is, it would be empty under its new name, which it never was on the primary; it has nothing to lose.
    """
    return bool(row.is_file and not row.size and e[SIZE])


def same_attributes(row: Row, e: Observed) -> bool:
    return bool(row.mode == e[MODE] and row.uid == e[UID] and row.gid == e[GID])


def how_wanted(row: Row, e: Observed) -> Optional[str]:
    """Whether and how content is wanted: "new", "data", "compare", or None."""
    if not row.ino:
        return "new" if row.dirty or e[SIZE] else None
    if unchanged(row, e):
        return "compare" if e[SIZE] else None
    if row.size != e[SIZE] or row.mtime != e[MTIME] or e[CHANGE] == CHANGE_DATA:
        return "data"
    if row.dirty or (e[CHANGE] == CHANGE_UNKNOWN and e[SIZE]):
        # Behind an equal size and time: only the digest knows. What was never here certainly is not.
        # (A ctime of 0 hides a change that may have come since, or one of a clock that was ahead.)
        same = e[CTIME] and row.pctime == e[CTIME] and row.pino == e[INO] and not row.dirty
        return None if same else "compare"
    return None
