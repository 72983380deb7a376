"""A session as a worker on another host than the primary's node sees it, and how data units end there.

What it has: a file that says where the volume is mounted on this host and how the secondary is reached, and the
terms that the primary's node tells (terms.py). It sends the content of files that are provably those that were
observed. All else it leaves to the primary's own node, in a unit that the ledger puts in the place of its own in
one step: files that it cannot identify or read, and the metadata of all, of which its mount is no witness.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import redis
from celery.exceptions import SoftTimeLimitExceeded

from replication.errors import SeamarkError
from replication.progress import Progress
from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from replication.remote.look import ssh_options
from replication.remote.target import parse_target
from replication.transfer.item import encode_items
from replication.volume.directory import DirectoryVolume, VolumeError
from replication.volume.mounted import MountedVolume
from tasks import fleet
from tasks.canvas import at_home_on, greet_signature
from tasks.context import Context, Held
from tasks.ledger import StaleFence
from tasks.terms import Terms, decode_terms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.session import Session, SessionDir
    from replication.transfer.item import FileItem, ItemResult
    from tasks.unit import Unit

log = logging.getLogger("seamark.elsewhere")
_EVERY_S = 0.5  # how old terms may be
_PATIENCE_S = 3.0  # the primary's node tells them every second
_STEP_S = 0.1
_GREET_S = 5
# What the secondary refuses to everybody: the unit is given back, and the reason shown.
_OF_THE_SECONDARY = {"no-space", "read-only"}


class Elsewhere(Context):
    """One session of another node, as one process of a worker sees it."""

    at_home = False

    def __init__(self, place: SessionDir, session: Session) -> None:
        super().__init__(place, session)
        self._filed = session
        self._terms: Terms | None = None
        self._looked = 0.0
        self._wrong = b""

    @property
    def progress(self) -> Progress:
        raise AssertionError("the progress of a session is on the primary's node alone")

    @cached_property
    def volume(self) -> DirectoryVolume:
        assert self._terms is not None
        return MountedVolume(os.fsencode(self.session.primary), self._terms.root_ino)

    def begin(self, epoch: int) -> None:
        """Have the terms of this epoch, and the volume. Raises Held, StaleFence, VolumeError."""
        until = time.monotonic() + _PATIENCE_S
        while self._terms is None or self._terms.epoch < epoch:
            if time.monotonic() > until:
                raise Held("the primary's node has not told what it needs to know")
            time.sleep(_STEP_S)
            self._read_terms()
        if self._terms.epoch > epoch:
            raise StaleFence
        try:
            self.volume.check_in_place()
        except VolumeError:
            if (gone := self.__dict__.pop("volume", None)) is None:
                raise
            gone.close()
            self.volume.check_in_place()  # mounted anew, perhaps

    def holding(self) -> str | None:
        return self._terms.held if self._terms is not None else "nothing is told yet"

    def refresh(self) -> None:
        """Take over what this host's file and the primary's node say by now."""
        stamp = self.place.stamp()
        if stamp != self._stamp:
            with suppress(SeamarkError):
                self._filed = self.place.load()
                self._stamp = stamp
                self.target = parse_target(self._filed.secondary)
                self.options = ssh_options(self.place, self._filed)
                self.drop_connection()
                self.__dict__.pop("volume", None)
                self._apply()
        if time.monotonic() - self._looked > _EVERY_S:
            with suppress(redis.RedisError):
                self._read_terms()

    def _read_terms(self) -> None:
        self._looked = time.monotonic()
        text = self.ledger.told()
        if text is None or text == self._wrong:
            return
        try:
            self._terms = decode_terms(text)
        except SeamarkError as error:
            self._wrong = text  # said once
            log.error("%s: %s", self.session.name, error.message)
            return
        self._apply()

    def _apply(self) -> None:
        if self._terms is None:
            return
        told = self._terms.sending.applied_to(self._filed)
        self.session = msgspec.structs.replace(told, root=self._terms.volume)
        at_home_on(self.session.name, self._terms.node)

    def _has_filled(self) -> bool:
        return True  # nobody but the primary's node begins a secondary

    def _believe(self, epoch: int, hello: dict[str, Any]) -> None:
        """Only the secondary that the primary's node knows. Raises Held until it has looked at another one."""
        self._read_terms()
        known = self._terms
        assert known is not None
        same = (hello["index_id"], hello["boot_id"]) == (known.index_id, known.boot)
        if same and hello["gen"] >= known.gen:
            return
        if self.ledger.once_in(_GREET_S, "greet"):
            greet_signature(self.session.name).apply_async()
        raise Held("the secondary is not what the primary's node knows: it is to look first")


# ---- units


@contextmanager
def working_elsewhere(work: Unit) -> Iterator[Unit]:
    """Run one unit, and leave to the primary's own node what fails here: its reason may be one of this host alone."""
    ctx = work.ctx
    try:
        work.alive()
        yield work
        fleet.content(ctx.session.name)
    except StaleFence:
        work.outcome = "stale: another epoch is at work"
    except Held as why:
        work.outcome = f"given back: {why}"
    except SoftTimeLimitExceeded:
        raise
    except SecondaryError as error:
        if error.code == "stale-epoch":
            work.outcome = f"stale: {error}"
        elif error.code in _OF_THE_SECONDARY:
            work.outcome = f"given back: {error}"
            ctx.ledger.trouble(error.code, str(error))
        else:
            _leave(work, f"the secondary says: {error}")
    except LinkLost as error:
        ctx.drop_connection()
        _leave(work, f"link to the secondary lost: {error}")
    except SeamarkError as error:
        _leave(work, error.message)
    except redis.RedisError as error:
        work.outcome = f"given back: {error}"  # whoever finds the unit undone submits it again
        log.warning("%s", error)
    except Exception as error:
        log.exception("unexpected %s", type(error).__name__)
        _leave(work, f"unexpected {type(error).__name__}: {error}")


def _leave(work: Unit, why: str) -> None:
    """Leave all of a unit to the primary's own node, and let this worker rest from its session for a while."""
    log.warning("left to the primary's node: %s", why)
    fleet.rest(work.ctx.ledger.redis, work.ctx.session.name, why)
    work.outcome = f"left to the primary's node: {why}"
    with suppress(StaleFence, redis.RedisError):
        payload = work.ctx.ledger.payload(work.batch, work.name)
        if payload is not None:
            work.finish(boot="", found={home_unit(work.name): payload})


def home_unit(unit: str) -> str:
    """The unit that takes this one's place in the ledger, and which only the primary's own node does."""
    return f"N{unit[1:]}"


def rest_of(
    work: Unit, asked: list[FileItem], results: list[ItemResult], here: list[FileItem]
) -> list[FileItem]:
    """What of these is left to the primary's own node: content that was not sent, and metadata of what was.

    ``here``: files that a twin sent, which was killed before it could leave their metadata to anybody.
    """
    unsent = [r.gfid for r in results if r.status in ("vanished", "error")]
    client = work.ctx.secondary(work.epoch).client
    wanted = dict(zip(unsent, client.wanted(unsent), strict=True)) if unsent else {}
    sent = {r.gfid for r in results if r.ctime_ns} | {item.gfid for item in here}
    left = [item for item in asked if wanted.get(item.gfid, 0) > 0]
    return left + [item._replace(how="metadata", ticket=0) for item in asked if item.gfid in sent]


def as_found(work: Unit, rest: list[FileItem]) -> dict[str, str | bytes]:
    return {home_unit(work.name): encode_items(rest)} if rest else {}
