"""Looking at the primary and telling the secondary: all three crawls end here.

An Observer gathers observations of names and directories, sends them in bounded requests, and
gathers what the secondary answers: which files it needs, whose metadata, which directories to list.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replication.failures import Failure, within
from replication.findings import Findings
from replication.observation import Change, Entry, Inode, Listing
from replication.secondary.filters import EVERYTHING, Filters
from replication.transfer.item import FileItem
from replication.volume.content import read_observed
from replication.volume.directory import VanishedError
from replication.volume.identity import ROOT_GFID

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from concurrent.futures import Future

    from replication.remote.answers import Reply
    from replication.remote.client import SecondaryClient
    from replication.volume.directory import DirectoryVolume

PART_NAMES = 2000  # names in one request: bounds memory at both ends, and the secondary's transaction
_CONTENT_BYTES = 2 << 20  # content after which a request is sent
_THIN_CONTENT_BYTES = 1 << 19  # over a long link: the far side begins sooner, and ends sooner after the last
_READ_AT_ONCE = 32  # files; bounds what is read beyond the next
_MOST_CONTENT = 8 << 20  # in one request; what is more goes the usual way
NEVER_NS = 2**63 - 1
_WINDOW = 24  # requests under way: what they hold is more than a long link does


log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sent:
    future: Any
    listings: list[Listing]
    number: int  # of this request
    paths: dict[bytes, bytes]  # parent gfid -> its path
    where: dict[bytes, tuple[bytes, Entry]]  # gfid -> path, entry


class Observer:
    """Observations of one unit of work: one segment's part, or one unit of a hybrid crawl."""

    def __init__(
        self,
        volume: DirectoryVolume,
        client: SecondaryClient,
        *,
        position: int | None = None,
        after: int | None = None,
        crawl: str | None = None,
        since_ns: int = NEVER_NS,
        not_before: int = 0,
        failing: Collection[str] = (),
        carry: bool = False,
        thin: bool = False,
        compress: bool = False,
        filters: Filters = EVERYTHING,
        deletes: dict[str, Any] | None = None,
    ) -> None:
        """``since_ns``: versions of files that changed later are not taken for what they say.

        ``not_before``: what vanishes is stamped with this time at least, whatever the clock says.
        ``failing``: keys of failures; those that turn out to be none any more are among the findings.
        ``carry``: small files that the secondary will want are sent along at once. ``deletes``: see submit_observe.
        """
        self._failing = failing
        self._volume = volume
        self._client = client
        self._position = position
        self._after = after
        self._since_ns = since_ns
        self._not_before = not_before
        self._crawl = crawl
        self._listings: list[Listing] = []
        self._paths: dict[bytes, bytes] = {}
        self._where: dict[bytes, tuple[bytes, Entry]] = {}
        self._pending = 0
        self._carry = carry
        self._compress = compress
        self._filters = filters
        self._deletes = deletes
        self._send_at = _THIN_CONTENT_BYTES if thin else _CONTENT_BYTES
        self._content: dict[bytes, tuple[Inode, dict[str, str], bytes]] = {}  # by gfid: as it was when read
        self._content_bytes = 0
        self._sent: deque[_Sent] = deque()
        self._sent_again: dict[int, Listing] = {}
        self._number = 0  # of the request that is being gathered
        self._listed: dict[bytes, int] = {}  # directory -> the request that lists it
        self._assumed: set[bytes] = (
            set()
        )  # directories that hold nothing there, unless an answer says otherwise
        self._changed: set[tuple[bytes, bytes]] = set()  # names under which content changed: parent, name
        self._asides: list[Future[Reply]] = []  # requests whose answers say nothing
        self._told = False
        self.born: set[bytes] = (
            set()
        )  # directories that were made, empty, and all that came into them is recorded
        self.came: set[tuple[bytes, bytes]] = set()  # names (parent, name) of what came from outside
        self.missed_before: set[bytes] = set()  # directories that were to be listed once, and not found
        self.findings = Findings()

    # ---- looking

    def look(self, dir_fd: int, parent: bytes, path: bytes, names: Mapping[bytes, Change]) -> None:
        """Observe some names of an open directory."""
        if self._filters.excludes_dir(path):
            return
        entries = []
        for name, entry in self._volume.observe_each(dir_fd, names.items()):
            if isinstance(entry, OSError):
                self.fail("entry", os.path.join(path, name), entry, of=within(parent, name))
                continue
            self._resolve(within(parent, name), os.path.join(path, name), entry)
            if self._left_out(path, entry):
                continue
            if entry.inode is not None and entry.inode.is_dir and entry.inode.gfid in self.born:
                entry = entry._replace(change=Change.EMPTY)  # noqa: PLW2901
            if entry.inode is None and (parent, name) in self.came:
                self.findings.strayed = True
            entries.append(entry)
            if names[name] is Change.DATA:
                self._changed.add((parent, name))
        # A changelog says D of a directory when something below it changed that it could not record: most often
        # it came from outside, with all that it holds.
        below = [e.inode.gfid for e in entries if e.inode and e.inode.is_dir and e.change is Change.DATA]
        if below:
            self.flush()
            self._asides.append(self._client.submit_unlist(below))
            self._assumed.update(below)
            self.findings.unlisted += [
                (e.inode.gfid, os.path.join(path, e.name))
                for e in entries
                if e.inode and e.inode.gfid in below
            ]
        # Not before what was gathered until now is sent.
        self._take_along(dir_fd, [entry for entry in entries if entry.change is Change.DATA])
        self._add(Listing(parent, entries), path)

    def list_directory(
        self, dir_fd: int, parent: bytes, path: bytes, names: list[bytes], *, empty: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Observe a whole directory; its subdirectories (gfid, path) on the same file system.

        If any of it cannot be read, nothing is called absent. ``empty``: the secondary has nothing of it, it
        seems; then neither of what is below it.
        """
        self._listed[parent] = self._number
        self.findings.found_again += [(parent, path)] if parent in self.missed_before else []
        complete = True
        below: list[tuple[bytes, bytes]] = []
        for start in range(0, max(len(names), 1), PART_NAMES):
            entries = []
            wanted = [(name, Change.UNKNOWN) for name in names[start : start + PART_NAMES]]
            for name, found in self._volume.observe_each(dir_fd, wanted):
                if isinstance(found, OSError):
                    complete = False
                    self.fail("entry", os.path.join(path, name), found, of=within(parent, name))
                elif not self._left_out(path, found):
                    entries.append(self._doubt(found))
            if empty:
                self._take_along(dir_fd, entries)
            last = start + PART_NAMES >= len(names)
            whole = start == 0 and last
            below += [
                (e.inode.gfid, os.path.join(path, e.name)) for e in entries if e.inode and e.inode.is_dir
            ]
            self._add(Listing(parent, entries, complete, start // PART_NAMES, last), path, at_once=not whole)
        if complete:
            self._resolve(within(parent), path)
        if empty:
            self._assumed.update(gfid for gfid, _ in below)
        return below

    def _left_out(self, path: bytes, entry: Entry) -> bool:
        is_dir = entry.inode is not None and entry.inode.is_dir
        return bool(self._filters) and self._filters.excludes(os.path.join(path, entry.name), is_dir)

    def seems_empty(self, gfid: bytes) -> bool:
        """Whether the secondary has nothing of a directory, as far as is known or likely."""
        return gfid in self.findings.empty or gfid in self._assumed

    def _resolve(self, of: str, path: bytes, entry: Entry | None = None) -> None:
        """Some place can be looked at. (An older version noted paths; and those of directories, until they were listed.)"""
        if not self._failing:
            return
        inode = entry.inode if entry is not None else None
        paths = [] if inode is not None and inode.is_dir else [os.fsdecode(path)]
        found = [key for each in (of, *paths) if (key := f"entry:{each}") in self._failing]
        self.findings.resolved += found
        if entry is not None and inode is None:
            self.findings.left += found

    def _take_along(self, dir_fd: int, entries: list[Entry]) -> None:
        """Have their content travel with the observation, if it is small and still as it was observed."""

        def read(entry: Entry) -> tuple[bytes, dict[str, str]] | None:
            return read_observed(self._volume, dir_fd, entry)

        for start in range(0, len(entries), _READ_AT_ONCE):
            if not self._carry or self._content_bytes >= _MOST_CONTENT:
                return
            some = entries[start : start + _READ_AT_ONCE]
            for entry, found in zip(some, self._volume.each(read, some), strict=True):
                if found is not None and entry.inode is not None:
                    content, xattrs = found
                    self._content[entry.inode.gfid] = (entry.inode, xattrs, content)
                    self._content_bytes += len(content)

    def _doubt(self, entry: Entry) -> Entry:
        if entry.inode is None or entry.inode.ctime_ns < self._since_ns:
            return entry
        return entry._replace(inode=entry.inode._replace(ctime_ns=0))

    def fail(
        self, step: str, path: bytes, error: OSError, *, of: str | None = None, gfid: bytes | None = None
    ) -> None:
        """Note something of the primary that could not be read: ``of`` (failures.py), or an object. Raises SeamarkError where all of it is away."""
        self._volume.check_answers(error)
        code = "permission" if error.errno in (errno.EACCES, errno.EPERM) else "io"
        self.findings.failures.append(
            Failure(
                step=step, gfid=gfid.hex() if gfid is not None else None, of=of, path=os.fsdecode(path), code=code,
                error=f"cannot read {os.fsdecode(path)}: {error.strerror}",
            )
        )  # fmt: skip

    # ---- sending

    def _add(self, listing: Listing, path: bytes, *, at_once: bool = False) -> None:
        self._listings.append(listing)
        self._paths[listing.parent] = path
        prefix = path + b"/" if path else b""
        for entry in listing.entries:
            if entry.inode is not None:
                self._where[entry.inode.gfid] = (prefix + entry.name, entry)
        self._pending += len(listing.entries) + 1
        self.findings.names += len(listing.entries)
        if at_once or self._pending >= PART_NAMES or self._content_bytes >= self._send_at:
            self.flush()

    def flush(self, *, even_nothing: bool = False) -> None:
        """Send what is gathered, without waiting for the answer."""
        if not self._listings and not even_nothing:
            return
        # An inode may be met twice, under two names: if it changed in between, the state that is told is the second.
        content = [
            (gfid.hex(), xattrs, data)
            for gfid, (inode, xattrs, data) in self._content.items()
            if self._where[gfid][1].inode == inode
        ]
        future = self._client.submit_observe(
            self._listings, position=self._position, after=self._after, crawl=self._crawl,
            limbo_until=max(time.time_ns(), self._not_before), content=content, compress=self._compress,
            deletes=self._deletes,
        )  # fmt: skip
        self._told = True
        self._sent.append(_Sent(future, self._listings, self._number, self._paths, self._where))
        self._number += 1
        self._listings, self._paths, self._where, self._pending = [], {}, {}, 0
        self._content, self._content_bytes = {}, 0
        self.collect(leave=_WINDOW)

    def collect(self, leave: int = 0) -> None:
        """Take in the answers that are here, and wait until at most ``leave`` are outstanding.

        Raises SecondaryError, LinkLost.
        """
        while self._sent and (len(self._sent) > leave or self._sent[0].future.done()):
            self._take(self._sent.popleft())
        if not leave:
            for aside in self._asides:
                aside.result()
            self._asides.clear()

    def finish(self) -> Findings:
        """Send the rest, wait for every answer. A position is told even when there is nothing to say of it."""
        self.flush(even_nothing=self._position is not None and not self._told)
        self.collect()
        return self.findings

    def _take(self, sent: _Sent) -> None:
        answer = sent.future.result()
        found = self.findings
        where = sent.where
        for gfid_hex, how in answer.need:
            path, entry = where.get(gfid := bytes.fromhex(gfid_hex), (None, None))
            if entry is None or entry.inode is None or path is None:
                continue
            i = entry.inode
            found.needs.append(FileItem(gfid, path, how, i.ino, i.ctime_ns, i.size, i.nlink, answer.ticket))
        for gfid_hex in answer.meta:
            if (at := where.get(bytes.fromhex(gfid_hex))) is not None:
                found.meta.append((bytes.fromhex(gfid_hex), at[0]))
        for gfid_hex in answer.list:
            gfid = bytes.fromhex(gfid_hex)
            if gfid in self._assumed and gfid_hex not in answer.empty:
                self._assumed.clear()  # the guess was wrong: nothing more is sent on the strength of it
            if (at := where.get(gfid)) is not None and self._listed.get(gfid, -1) <= sent.number:
                found.unlisted.append((gfid, at[0]))
        if log.isEnabledFor(logging.DEBUG):
            _say(sent, dict(answer.need), set(answer.meta))
        found.doubted |= {
            bytes.fromhex(gfid)
            for gfid, parent, name in answer.kept
            if (bytes.fromhex(parent), os.fsencode(name)) in self._changed
        }
        found.empty |= {bytes.fromhex(gfid) for gfid in answer.empty}
        found.files += answer.content[0]
        found.bytes += answer.content[1]
        for gfid_hex, code, message in answer.errors:
            found_at = where.get(bytes.fromhex(gfid_hex))
            text = os.fsdecode(found_at[0]) if found_at else None
            found.failures.append(Failure(step="entry", gfid=gfid_hex, path=text, code=code, error=message))
        if self._failing:
            refused = {gfid_hex for gfid_hex, _, _ in answer.errors}
            keys = {gfid.hex(): f"entry:{gfid.hex()}" for gfid in where}
            found.resolved += [
                key for gfid_hex, key in keys.items() if key in self._failing and gfid_hex not in refused
            ]
        for name, amount in answer.counts.items():
            found.counts[name] = found.counts.get(name, 0) + amount
        if answer.unknown:
            self._send_with_ancestors(sent, {bytes.fromhex(gfid) for gfid in answer.unknown})

    def _send_with_ancestors(self, sent: _Sent, unknown: set[bytes]) -> None:
        """Parents which the index does not have: observe the way down to them, then those names again."""
        again = [listing for listing in sent.listings if listing.parent in unknown]
        for listing in again:
            if id(listing) in self._sent_again:
                continue  # came back a second time: it vanished in between, and that is recorded elsewhere
            self._sent_again[id(listing)] = listing
            path = sent.paths[listing.parent]
            try:
                self._observe_way(path, listing.parent)
            except VanishedError:
                self.findings.astray[listing.parent] = path
                continue
            except OSError as error:
                self.fail("entry", path, error, of=within(listing.parent))
                continue
            self._add(listing, path)

    def _observe_way(self, path: bytes, target: bytes) -> None:
        parent, at = ROOT_GFID, b""
        for component in path.split(b"/"):
            fd = self._volume.open_dir(at, parent)
            try:
                self.look(fd, parent, at, {component: Change.NONE})
            finally:
                os.close(fd)
            at = os.path.join(at, component)
            self.flush()
            fd = self._volume.open_dir_unchecked(at)
            try:
                parent = self._volume.identify_fd(fd)[0]
            finally:
                os.close(fd)
        if parent != target:
            raise VanishedError(path)


def _say(sent: _Sent, need: dict[str, str], meta: set[str]) -> None:
    """Each name that was looked at, and what is still to be sent of it, for who follows one file through the log."""

    def shown(path: bytes) -> str:
        return path.decode(errors="backslashreplace")

    for gfid, (path, _) in sent.where.items():
        what = need.get(gfid.hex(), "metadata" if gfid.hex() in meta else "nothing")
        log.debug("%s (%s): observed; to be sent: %s", shown(path), gfid.hex(), what)
    for listing in sent.listings:
        for entry in listing.entries:
            if entry.inode is None:
                log.debug("%s: gone", shown(os.path.join(sent.paths[listing.parent], entry.name)))
