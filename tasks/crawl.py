"""crawl_subtree: one piece of a hybrid crawl. Compare digests in bulk, observe what differs, go on."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from replication import unsettled
from replication.failures import within
from replication.frontier import decode_dirs, encode_dirs
from replication.observer import NEVER_NS, Observer
from replication.volume.directory import VanishedError
from tasks.app import app
from tasks.carry import carrying, counts
from tasks.metadata import as_moved, data_units, send_metadata, undressed
from tasks.unit import DONE, Unit, working

if TYPE_CHECKING:
    import sqlite3
    from concurrent.futures import Future

    from celery import Task

    from replication.remote.answers import Reply

    Dirs = list[tuple[bytes, bytes]]

# One unit looks at this much, then hands the rest on: bounds time, memory and what a kill costs. What only has
# to be compared is soon done; a unit of its own costs as much as a thousand names.
_UNIT_NAMES = 6000  # observed
_UNIT_COMPARED = 40_000
_UNIT_S = 3.0
_ASK_DIRS = 1000  # directories whose digests are asked for together
_ASK_NAMES = 16_000
_ASKED = 8  # such questions under way: over a long link an answer takes as long as looking at some of them
_SPLIT = 6  # into how many units what is left is handed on, so that they run in parallel


@app.task(bind=True, name="tasks.crawl.crawl_subtree")
def crawl_subtree(task: Task[..., Any], session: str, epoch: int, batch: int, unit: str) -> str:
    """Look at some directories and below; settles the unit with the data and directories it found."""
    with working(task, session, epoch, batch, unit) as work:
        payload = work.payload()
        manifest = work.ctx.ledger.batch(batch)
        if payload is None or manifest is None:
            return DONE
        if manifest.manifest["crawl"] != work.ctx.progress.brick().crawl:
            return "this crawl is over"
        boot = work.ctx.secondary(epoch).boot_id
        walk = _Walk(work, manifest.manifest, payload.decode())
        walk.run()
        found = walk.observer.finish()
        if found.found_again:  # first: what goes wrong in them is as old as they are
            work.ctx.progress.change(lambda db: unsettled.seen_at(db, found.found_again))
        walk.note_vanished()
        dressed = send_metadata(work, found.meta)
        failures = found.failures + dressed.failures
        crawl_units = {
            f"C:{unit[2:]}.{n}": walk.handed_on(walk.queue[n::_SPLIT])
            for n in range(min(_SPLIT, len(walk.queue)))
        }
        units, says = data_units(found.needs, work.ctx, f"{unit}:")
        units |= undressed(dressed.missed, f"{unit}:")
        if failures:
            work.say(failures)
        if failures or dressed.missed:
            # What was missed has its unit, too; but should the ledger be lost, nothing else would remember it: what was
            # looked at is not looked at again.
            work.ctx.progress.record(failures + as_moved(dressed.missed), [], work.since_ns())
        # Durable before the ledger: a crawl that is interrupted goes on with these.
        crawl_units = work.ctx.progress.crawled(walk.crawl, unit, crawl_units)
        if not work.finish(boot=boot, found={**units, **crawl_units}, says=says):
            return DONE
        work.ctx.ledger.count(
            scanned=walk.names, entries=sum(found.counts.values()) + found.files + len(found.needs), **counts(found),
        )  # fmt: skip
        work.outcome = (
            f"{walk.directories} directories, {walk.names} names, {walk.different} differed; "
            f"{found.files} files went along, {len(found.needs)} to send, {len(walk.queue)} directories handed on, {len(failures)} failed"
        )
    return work.outcome


class _Walk:
    """Depth first through some directories, until the unit's budget is used up; ``queue`` is what is left."""

    def __init__(self, work: Unit, manifest: dict[str, Any], payload: str) -> None:
        self.work = work
        self.crawl: str = manifest["crawl"]
        self.since_ns: int = manifest["since_ns"]
        known = json.loads(payload)
        self.queue = decode_dirs(known["dirs"] if isinstance(known, dict) else payload)
        self.client = work.ctx.secondary(work.epoch).client
        self.volume = work.ctx.volume
        self.observer = Observer(
            self.volume,
            self.client,
            crawl=self.crawl,
            since_ns=self.since_ns,
            not_before=work.ctx.progress.brick().front_ns + 1,
            **carrying(work),
        )
        # Directories that the secondary does not know: no use asking; and those of which it has nothing.
        self.new, self.empty = (
            {bytes.fromhex(gfid) for gfid in known[kind]} if isinstance(known, dict) else set[bytes]()
            for kind in ("new", "empty")
        )
        self.observer.missed_before = work.ctx.progress.look(unsettled.directories)
        self._asked: deque[tuple[Future[Reply], Dirs]] = deque()
        self.names = self.observed = self.directories = self.different = 0
        self._vanished: dict[bytes, bytes | None] = {}  # directories: gfid, path

    def run(self) -> None:
        until = time.monotonic() + _UNIT_S
        # The top only until there is something to divide: what is below it is then looked at in parallel.
        top = "." not in self.work.name
        while self.queue and not self._enough() and time.monotonic() < until:
            self._group(1 if top else _ASK_DIRS)
            self._answers(_ASKED)
            self.work.alive()
            if top and len(self.queue) >= _SPLIT:
                break
        self._answers(0)
        self.observer.collect()
        self._note_new()

    def _enough(self) -> bool:
        return self.observed >= _UNIT_NAMES or self.names >= _UNIT_COMPARED

    def handed_on(self, dirs: Dirs) -> str:
        """What another unit is to look at, with what is known of it."""
        new, empty = ([gfid.hex() for gfid, _ in dirs if gfid in kind] for kind in (self.new, self.empty))
        return json.dumps({"dirs": encode_dirs(dirs), "new": new, "empty": empty})

    def _group(self, most: int) -> None:
        """A few directories: summarise them and ask which differ; their subdirectories come next."""
        group: list[tuple[bytes, bytes, bytes]] = []
        names = 0
        upto = self.directories + most
        while self.queue and self.directories < upto and names < _ASK_NAMES and not self._enough():
            gfid, path = self.queue.pop()
            if gfid in self.new:
                names += self._observe(gfid, path, descend=True, empty=gfid in self.empty)
                continue
            summary = self._summarise(gfid, path)
            if summary is None:
                continue
            digest, count, subdirs = summary
            names += count
            group.append((gfid, path, digest))
            prefix = path + b"/" if path else b""
            self.queue += [(sub, prefix + name) for sub, name in subdirs]
        self.names += names
        if group:
            question = self.client.submit_differing([(gfid, digest) for gfid, _, digest in group])
            self._asked.append((question, [(gfid, path) for gfid, path, _ in group]))
        self._note_new()

    def _answers(self, leave: int) -> None:
        """Observe what differs, as far as the answers are here; wait until at most ``leave`` are outstanding."""
        while self._asked and (len(self._asked) > leave or self._asked[0][0].done()):
            question, dirs = self._asked.popleft()
            differ, empty = self.client.differing_of(question.result())
            for index in differ:
                self.different += 1
                self.work.alive()
                self._observe(*dirs[index], descend=False, empty=index in empty)
            if differ:
                self.observer.flush()

    def _note_new(self) -> None:
        self.new |= {gfid for gfid, _ in self.observer.findings.unlisted}
        self.empty |= self.observer.findings.empty
        self.observer.findings.unlisted.clear()
        self.observer.findings.empty.clear()

    def _summarise(self, gfid: bytes, path: bytes) -> tuple[bytes, int, Dirs] | None:
        fd = self._open(gfid, path)
        if fd is None:
            return None
        try:
            summary = self.volume.summarise(
                fd, self.volume.names(fd, is_root=not path), path, self.work.ctx.filters
            )
        except OSError as error:
            self.observer.fail("entry", path, error, of=within(gfid))
            return None
        finally:
            os.close(fd)
        # An empty digest equals none: what changed since then is compared whatever its version says.
        digest = b"" if summary.newest_ns >= self.since_ns else summary.digest
        return digest, summary.names, summary.subdirs

    def _observe(self, gfid: bytes, path: bytes, *, descend: bool, empty: bool) -> int:
        fd = self._open(gfid, path)
        if fd is None:
            return 0
        try:
            names = self.volume.names(fd, is_root=not path)
            below = self.observer.list_directory(fd, gfid, path, names, empty=empty)
        except OSError as error:
            self.observer.fail("entry", path, error, of=within(gfid))
            return 0
        finally:
            os.close(fd)
        self.observed += len(names)
        if descend:
            self.new |= {sub for sub, _ in below}
            if empty:  # not certain, the answer is not here yet; if wrong, content travels for nothing
                self.empty |= {sub for sub, _ in below}
            self.queue += below
        return len(names)

    def note_vanished(self) -> None:
        """What was not where it was to be was moved or removed, which has a record of its own. But if it was something above that
        moved, none leads to what is in this, and nothing else says any more that it was not looked at.
        """
        if not self._vanished:
            return
        # Content that may have changed and left its version would be looked at by this crawl alone.
        self.client.unlist(self._vanished, doubt=self.since_ns < NEVER_NS)

        def miss(db: sqlite3.Connection) -> None:
            unsettled.miss(db, self._vanished.items(), unsettled.since_ns(db))

        self.work.ctx.progress.change(miss)

    def _open(self, gfid: bytes, path: bytes) -> int | None:
        self.directories += 1
        try:
            return self.volume.open_dir(path, gfid)
        except VanishedError:
            self._vanished[gfid] = path
            return None
        except OSError as error:
            self.observer.fail("entry", path, error, of=within(gfid))
            return None
