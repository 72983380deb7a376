"""The crawler: decides what to replicate next, cuts it into batches and enqueues each as a chord.

It alone opens batches, one tick at a time under one lock. Everything that it decides follows from
durable state (progress, changelog); the ledger only says what is still under way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from replication import unsettled
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.changelog.index import State
from replication.frontier import encode_dirs
from replication.observer import NEVER_NS
from replication.transfer.item import FileItem, How
from replication.volume.directory import VolumeError
from replication.volume.identity import ROOT_GFID
from scheduler.batches import open_batch
from scheduler.epoch import start_over
from scheduler.retry import send_again, wanted_at
from scheduler.settle import list_again, settle, settle_scanned
from tasks.canvas import mark_signature
from tasks.deletes import settle_deletes
from tasks.entry import PART_NAMES
from tasks.ledger import OutOfOrder, StaleFence
from tasks.metadata import data_units, send_metadata_now, undressed
from tasks.orphans import lacking

if TYPE_CHECKING:
    from replication.changelog.index import SegmentInfo
    from tasks.context import Context
    from tasks.ledger import OpenBatch, Standing

log = logging.getLogger("seamark.crawl")

BATCH_SEGMENTS = 64
WINDOW = 4  # batches under way at the same time
_DIRTY_MOST = 20_000
_DIRTY_EVERY_S = 5
_SCAN_AGAIN_S = 60
_HELD_EVERY_S = 2  # at least so long between looks whether what is held may go
_GAP = "gap in the changelog"


class Crawler:
    """One look at a session: what is there to do, and is there room to start it?"""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.brick = ctx.progress.brick()
        self.epoch = self.brick.epoch
        self.name = ctx.session.name

    def tick(self) -> str:
        """Open what can be opened. Returns what was done, for people. Raises SeamarkError."""
        ledger = self.ctx.ledger
        if ledger.fence() != self.epoch:
            return start_over(self.ctx, self.epoch, "the ledger is gone")
        self.ctx.renew_volume()
        self.ctx.volume.check_in_place()
        if (why := self.ctx.resting()) is not None:
            return why
        try:
            standing = ledger.standing(self.epoch)
            if standing.opened < self.ctx.progress.taken(self.epoch):
                return start_over(self.ctx, self.epoch, "the ledger is an older state of itself")
            if standing.front > ledger.forgotten():
                mark_signature(self.name, self.epoch, standing.front).apply_async()
            if self._unsettled() and ledger.once_in(_HELD_EVERY_S, "held"):
                settle_deletes(self.ctx, self.epoch)
            if self._changelog_lost():
                return start_over(
                    self.ctx, self.epoch, "the changelog is another one: it is shorter than the mark"
                )
            if self.brick.crawl is not None:
                return self._go_on_with_hybrid(standing)
            if (why := self._hybrid_wanted()) is not None:
                return self._begin_hybrid(standing, why, gap=why.startswith(_GAP))
            return self._changelog(standing)
        except (OutOfOrder, StaleFence):
            return "somebody else is at work"

    # ---- hybrid crawl

    def _hybrid_wanted(self) -> str | None:
        if not self.brick.complete:
            return "what is there is not known any more" if self.brick.front_ns else "no mark yet"
        if self.ctx.progress.crawl_filters() != self._filters():
            return "the filters changed"
        if self._scanning():
            # A run that begins looks at once, whatever an earlier one planned.
            if self.brick.crawl_ended < self.epoch or self.ctx.progress.scan_due("scan"):
                return "scan"
            again = self.ctx.progress.look(unsettled.holds) and self._scan_again()
            return "scan: directories moved during the last one" if again else None
        following = self._following(self.brick.front)
        if following and following[0].state is State.GAP:
            return f"{_GAP}: {following[0].reason}"
        if following and following[0].number > self.brick.front + 1:  # only gaps skip numbers
            return f"{_GAP}: it begins after what was applied"
        due = self.ctx.progress.scan_due(self.ctx.place.detector())
        return "periodic look for what was not recorded" if due else None

    def _scan_again(self) -> bool:
        """Whether the last scan missed something that is still not there: not more than once a minute."""
        settle_scanned(self.ctx, self.epoch)
        if not self.ctx.progress.look(unsettled.holds):
            self.ctx.publish_mark(self.epoch)
            return False
        ledger = self.ctx.ledger
        return ledger.opened() <= ledger.forgotten() and ledger.once_in(_SCAN_AGAIN_S, "scan again")

    def _filters(self) -> str:
        return json.dumps(self.ctx.session.filters)

    def _changelog_lost(self) -> bool:
        """Whether positions that were applied do not exist any more; noted, if so."""
        known = max(self.brick.front, self.brick.crawl_position if self.brick.crawl is not None else 0)
        if self._scanning() or not known:
            return False
        last = self.ctx.store.last_closed()
        if last is None or last.number >= known:
            return False
        self.ctx.progress.changelog_lost()
        return True

    def _scanning(self) -> bool:
        return self.ctx.place.detector() == "scan"

    def _begin_hybrid(self, standing: Standing, why: str, *, gap: bool) -> str:
        if standing.opened > self.ctx.ledger.forgotten():
            return f"waiting for batches under way before a hybrid crawl ({why})"
        now = time.time_ns()
        position = self.brick.front
        # Records before a gap may have given a version to content whose change lies in it; so may another holder's.
        lost = not self.brick.complete and self.brick.front_ns > 0
        since = self.brick.front_ns if gap or lost else NEVER_NS
        if not self._scanning():
            asked: dict[str, Any] = {}
            if self.brick.front_ns:
                asked["since_ns"] = since if since != NEVER_NS else None
            if not self.brick.complete:  # all is looked at now, or was by who replicated before
                asked["explained_ns"] = self.brick.front_ns or now
            try:
                position = int(agent_call(self.ctx.place.changelog, "barrier", **asked)["position"])
            except (AgentRefused, AgentUnreachable):
                return "waiting for the agent"
        self._refuse_emptied()
        crawl = uuid.uuid4().hex
        root = {"C:0": encode_dirs([(ROOT_GFID, b"")])}
        if not self.ctx.progress.begin_crawl(self.epoch, crawl, position, now, since, root, self._filters()):
            return "somebody else is at work"
        log.info("%s: hybrid crawl begins: %s", self.name, why)
        self.brick = self.ctx.progress.brick()
        return self._go_on_with_hybrid(standing)

    def _refuse_emptied(self) -> None:
        """A root that is empty where it was full is taken for a primary that is not there. Raises VolumeError."""
        volume = self.ctx.volume
        if volume.names(volume.root_fd, is_root=True):
            return
        if self.brick.complete and (held := self.ctx.secondary(self.epoch).client.stat()["entries"]):
            raise VolumeError(f"the primary is empty, but the secondary holds {held} names")

    def _go_on_with_hybrid(self, standing: Standing) -> str:
        if standing.opened > self.ctx.ledger.forgotten():
            return "hybrid crawl under way"
        brick = self.brick
        assert brick.crawl is not None
        manifest = {
            "kind": "hybrid", "crawl": brick.crawl, "start_ns": brick.crawl_ns, "end_ns": brick.crawl_ns,
            "final": brick.crawl_swept, "since_ns": brick.crawl_since_ns,
        }  # fmt: skip
        # After a restart of anything the secondary may not have this crawl open any more. Not waited for here: what
        # is asked next is answered after it.
        begun = self.ctx.secondary(self.epoch).client.submit("begin_crawl", crawl=brick.crawl)
        if not brick.crawl_swept:
            self._send_root()
            begun.result()
            return open_batch(
                self.ctx, self.epoch, standing, manifest, dict(self.ctx.progress.frontier()), {}
            )
        content, more = self._lacking()
        bare, more_bare = self._lacking(undressed=True)
        begun.result()
        # As many as one batch may hold; the crawl ends with the batch that leaves none.
        manifest["final"] = not (more or more_bare)
        after = f"{brick.crawl}:{standing.opened}:"
        units, says = data_units(self._items(content), self.ctx, after)
        units |= undressed(bare, after)
        return open_batch(self.ctx, self.epoch, standing, manifest, units, says)

    def _lacking(self, *, undressed: bool = False) -> tuple[list[tuple[bytes, bytes]], bool]:
        """(gfid, path) of files whose content the secondary still lacks (``undressed``: of what lacks its metadata), and whether there are more.

        They moved while they were looked at, or the ledger was lost: found by the names that the secondary has for them.
        What failed for a reason is on the failure list, and not tried here.
        """
        return lacking(self.ctx, self.epoch, undressed=undressed, most=_DIRTY_MOST)

    def _items(self, files: list[tuple[bytes, bytes]], how: How = "data") -> list[FileItem]:
        """One that is not called so here any more is among them all the same: until its new name has come there, or its end, it
        is a failure, or the mark would pass it.
        """
        return [wanted_at(self.ctx.volume, gfid, path, how) for gfid, path in files]

    def _send_root(self) -> None:
        """The root's own attributes: no directory lists it."""
        failures = send_metadata_now(self.ctx, self.epoch, [(ROOT_GFID, b"")]).failures
        mended = [] if failures else [f"metadata:{ROOT_GFID.hex()}"]
        self.ctx.progress.record(failures, mended, self.brick.stime_ns + 1)

    # ---- changelog crawl

    def _following(self, after: int) -> list[SegmentInfo]:
        return self.ctx.store.segments(after)

    def _changelog(self, standing: Standing) -> str:
        if self._scanning():
            return "idle"
        opened = 0
        settle(self.ctx, self.epoch, walking=_walking(self._under_way(standing)))
        while standing.opened - self.ctx.ledger.forgotten() < WINDOW:
            under_way = self._under_way(standing)
            if _walking(under_way):
                break  # entries are serial: the next batch's come after these
            # After that: a batch that is not among them any more has moved the front.
            self.brick = self.ctx.progress.brick()
            before_it = [batch.manifest for batch in under_way if "last" in batch.manifest]
            after = max([self.brick.front, *(manifest["last"] for manifest in before_it)])
            # Its first change may be older than its first segment, which was opened when the recorder came to it.
            upto_ns = max([self.brick.front_ns, *(manifest["end_ns"] for manifest in before_it)])
            segments = self._cut(self._following(after))
            if not segments:
                if standing.opened == standing.front == self.ctx.ledger.forgotten():
                    self._idle()
                break
            data = [s for s in segments if s.state is State.DATA]
            groups = _together(data)
            before = [self.ctx.ledger.sent(), *(group[-1].number for group in groups)]
            units = {
                f"E:{group[-1].number}:0": _todo(group, after)
                for group, after in zip(groups, before, strict=False)
            }
            manifest = {
                "kind": "changelog", "first": segments[0].number, "last": segments[-1].number,
                "sent": before[-1], "start_ns": min(segments[0].start_ns, upto_ns + 1), "end_ns": segments[-1].end_ns,
            }  # fmt: skip
            says = {
                name: f"{sum(s.records for s in group)} records"
                for name, group in zip(units, groups, strict=True)
            }
            open_batch(self.ctx, self.epoch, standing, manifest, units, says)
            standing = self.ctx.ledger.standing(self.epoch)
            opened += 1
        return f"{opened} batches opened" if opened else "idle"

    def _under_way(self, standing: Standing) -> list[OpenBatch]:
        numbers = range(self.ctx.ledger.forgotten() + 1, standing.opened + 1)
        return [batch for number in numbers if (batch := self.ctx.ledger.batch(number)) is not None]

    def _cut(self, segments: list[SegmentInfo]) -> list[SegmentInfo]:
        """Consecutive segments for one batch; a gap ends it."""
        batch: list[SegmentInfo] = []
        records = 0
        for segment in segments:
            if segment.state is State.GAP or len(batch) >= BATCH_SEGMENTS:
                break
            if batch and records + segment.records > self.ctx.session.batch_records:
                break
            batch.append(segment)
            records += segment.records
        return batch

    def _idle(self) -> None:
        """Nothing is under way: time goes on, and what lost its last name for good is deleted."""
        last = self.ctx.store.last_closed()
        if last is None or last.state is State.GAP or not self._nothing_since(last):
            return
        # Before the mark moves, and from time to time.
        look = last.number != self.brick.front or self.ctx.ledger.once_in(_DIRTY_EVERY_S, "dirty")
        if look and (forgotten := self._lacking()[0]):
            # Nobody is at it, and no record will come for it: a unit was lost together with its worker.
            log.warning("%s: %d files were left without content: sending them", self.name, len(forgotten))
            # Or it is doubted, and about to be looked at: "compare" sends nothing that is right.
            send_again(self.ctx, self.epoch, self._items(forgotten, "compare"))
            return
        if self.ctx.ledger.once_in(_DIRTY_EVERY_S, "unlisted") and list_again(self.ctx, self.epoch):
            return
        self.ctx.progress.advance(self.epoch, last.number, last.end_ns)
        settle(self.ctx, self.epoch, walking=False)
        self.ctx.publish_mark(self.epoch)
        if not self.ctx.ledger.limbo() and not self._waits():
            return
        left = settle_deletes(self.ctx, self.epoch)
        self.ctx.ledger.set_limbo(left)
        left += self._waits()
        if left and self.ctx.ledger.once_in(1, "limbo barrier"):
            # It vanished after that position: have one closed after it. The agent tells when it has.
            with contextlib.suppress(AgentRefused, AgentUnreachable):
                agent_call(self.ctx.place.changelog, "barrier")

    def _unsettled(self) -> bool:
        """Whether deletions are held, and it is to be asked what becomes of them."""
        held = self.ctx.progress.held()
        ignored = self.ctx.session.ignore_deletes and held.since_ns is None and not held.question
        return held.any and not ignored

    def _waits(self) -> bool:
        """Whether deletions wait for the front to pass them, and not for a person."""
        held = self.ctx.progress.held()
        return held.any and not held.question and not self.ctx.session.ignore_deletes

    def _nothing_since(self, last: SegmentInfo) -> bool:
        """Whether no position between the front and the newest holds anything."""
        return (
            all(s.state is State.TICK for s in self._following(self.brick.front))
            or last.number == self.brick.front
        )


def _walking(under_way: list[OpenBatch]) -> bool:
    return any(unit.startswith("E:") for batch in under_way for unit in batch.units)


def _together(segments: list[SegmentInfo]) -> list[list[SegmentInfo]]:
    """Small ones that wait are looked at as one: each costs as much as some hundred names."""
    groups: list[list[SegmentInfo]] = []
    records = 0
    for segment in segments:
        records += segment.records
        if not groups or records > PART_NAMES:
            groups.append([])
            records = segment.records
        groups[-1].append(segment)
    return groups


def _todo(group: list[SegmentInfo], after: int | None) -> str:
    """The first part of some segments: their records from the first on. ``after``: the position sent before them."""
    numbers = [segment.number for segment in group]
    return json.dumps(
        {"segment": numbers[-1], "segments": numbers, "after": after, "part": 0, "at": 0, "dirs": "[]"}
    )
