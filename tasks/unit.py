"""What every unit of work does around its own work: claim, refuse what is stale, finish, report."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import redis
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from replication.errors import SeamarkError
from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from tasks import alive, trace
from tasks.bisect import MOST_STARTS, bisect, is_data
from tasks.canvas import extend, mark_signature, start_over_signature, unit_signature
from tasks.context import Context, Held, context
from tasks.ledger import StaleFence
from tasks.link import LinkRests
from tasks.visibility import renew

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery import Signature, Task

    from replication.failures import Failure

log = logging.getLogger("seamark.tasks")
STALE = "stale: another epoch is at work"
DONE = "done already"
_SAID = 10  # failures of one unit that are logged one by one


class CannotBeDone(Exception):
    """A unit that came to no end, however often it was begun."""


class Unit:
    """One unit being done by the running task."""

    def __init__(self, task: Task[..., Any], ctx: Context, epoch: int, batch: int, unit: str) -> None:
        self.task = task
        self.ctx = ctx
        self.epoch = epoch
        self.batch = batch
        self.name = unit
        self.began_ns = time.time_ns()
        self._alive_at = 0.0
        self.outcome = ""
        self.token = ""  # of the payload that was read
        self._started = False

    def alive(self) -> None:
        """A sign of life, at most once a second: the sweeper leaves this unit alone, and so does the broker."""
        if time.monotonic() - self._alive_at >= 1:
            self._alive_at = time.monotonic()
            if self.name:
                self.ctx.ledger.claim(self.name)
            renew(self.task, self.ctx.broker)
            alive.show(self.ctx.ledger)

    def payload(self) -> bytes | None:
        """What is to be done; None when it is done already. Raises Held when nothing is to be done now."""
        self.ctx.begin(self.epoch)
        if (why := self.ctx.holding()) is not None:
            raise Held(why)
        payload, self.token = self.ctx.ledger.payload_and_token(self.batch, self.name)
        if payload is not None and is_data(self.name):
            self._started = True
            if (starts := self.ctx.ledger.started(self.name)) > MOST_STARTS:
                raise CannotBeDone(f"its process ended {starts - 1} times while it was at it")
        return payload

    def ended(self) -> None:
        """The unit came to an end of some kind: its process lives."""
        if self._started:
            with suppress(redis.RedisError):
                self.ctx.ledger.forget_starts(self.name)

    @property
    def found_by(self) -> str:
        """Where what this unit's first step found is kept for its second; after ``payload``."""
        return f"{self.name}@{self.token}"

    def signature(self, unit: str, says: str = "") -> Signature:
        return unit_signature(self.ctx.session.name, self.epoch, self.batch, unit, says)

    def say(self, failures: list[Failure]) -> None:
        """Log what failed in this unit: the first of them."""
        for failure in failures[:_SAID]:
            what = (failure.path or failure.gfid or "?").encode(errors="backslashreplace").decode()
            log.warning("%s of %s failed: %s (%s)", failure.step, what, failure.error, failure.code)
        if len(failures) > _SAID:
            log.warning("%d more failed: seamark failures %s", len(failures) - _SAID, self.ctx.session.name)

    def since_ns(self) -> int:
        """The earliest time at which what this unit looks at may have changed: a failure of it holds the mark there."""
        batch = self.ctx.ledger.batch(self.batch)
        if batch is None or batch.manifest["kind"] != "changelog":
            return self.ctx.progress.brick().stime_ns + 1
        return int(batch.manifest["start_ns"])

    def start_over(self, why: str) -> None:
        """Leave this epoch behind: all work begins again from the durable front."""
        log.warning("%s", why)
        start_over_signature(self.ctx.session.name, self.epoch, why).apply_async()

    def finish(
        self,
        *,
        boot: str,
        found: Mapping[str, str | bytes] | None = None,
        says: Mapping[str, str] | None = None,
        failures: list[Failure] | None = None,
        resolved: Mapping[str, int] | None = None,
    ) -> bool:
        """Settle this unit with what it found, then enqueue that. False when a twin was first.

        ``resolved``: keys of failures that are none any more, and when a look that says so began.
        """
        standing = self.ctx.ledger.settle(
            self.epoch, self.batch, self.name, token=self.token, boot=boot, failures=failures, resolved=resolved, found=found,
        )  # fmt: skip
        if not standing.done:
            return False
        extend(self.task, [self.signature(name, (says or {}).get(name, "")) for name in found or {}])
        if standing.front >= self.batch and not self.task.request.chord:
            mark_signature(self.ctx.session.name, self.epoch, self.batch).apply_async()
        return True


def note_taken_over(ctx: Context, epoch: int) -> None:
    """The secondary refused an epoch: if it is ours still, somebody else's is served."""
    if ctx.progress.brick().epoch == epoch:
        ctx.ledger.trouble("taken-over", "the secondary is served by another run of this session by now")


@contextmanager
def working(task: Task[..., Any], session: str, epoch: int, batch: int, unit: str) -> Iterator[Unit]:
    """Run one unit. Stale epochs end quietly; a lost link or a full secondary leaves the unit to the sweeper.

    The task never fails towards Celery for a reason that we know: a failed member would fail its chord, and the
    unit stays in the ledger anyway.
    """
    ctx = context(session)
    work = Unit(task, ctx, epoch, batch, unit)
    ctx.alive = work.alive
    with trace.at(f"{session}/{batch}/{unit}".rstrip("/")):
        if ctx.at_home:
            with _working_at_home(work):
                yield work
            return
        from tasks.elsewhere import working_elsewhere

        with working_elsewhere(work):
            yield work


@contextmanager
def _working_at_home(work: Unit) -> Iterator[None]:
    ctx, epoch, batch, unit = work.ctx, work.epoch, work.batch, work.name
    try:
        work.alive()
        yield
    except StaleFence:
        work.outcome = STALE
    except Held as why:
        work.outcome = f"given back: {why}"
    except LinkLost as error:
        ctx.drop_connection()
        work.outcome = f"given back: {error}"
        log.warning("link to the secondary lost: %s", error)
    except SecondaryError as error:
        if error.code == "stale-epoch":
            work.outcome = STALE
            note_taken_over(ctx, epoch)
        elif error.code == "crawl-closed" and (crawl := ctx.progress.brick().crawl) is not None:
            # Its index was replaced, or restored: the crawl that is open here is open there too.
            ctx.secondary(epoch).client.begin_crawl(crawl)
            work.outcome = "given back: the secondary had closed this crawl"
        elif error.code in ("out-of-order", "crawl-closed"):
            work.outcome = f"refused by the secondary: {error.code}"
            if unit and ctx.ledger.payload(batch, unit) is not None:
                # Not a late twin: what the secondary has applied is not what we believe. It is asked anew.
                work.start_over(str(error))
        else:
            work.outcome = f"given back: {error}"
            log.warning("the secondary says: %s", error)
            ctx.ledger.trouble(error.code, str(error))
    except LinkRests as error:
        work.outcome = f"given back: {error.message}"
        ctx.ledger.trouble(error.code, error.message)
    except SeamarkError as error:
        work.outcome = f"given back: {error.message}"
        ctx.ledger.trouble(getattr(error, "code", "unreachable"), error.message)
        log.warning("%s", error.message)
    except SoftTimeLimitExceeded:
        raise
    except (redis.RedisError, OperationalError) as error:
        # The broker or Redis is away, or has a new master: nothing can be noted there now, and the ledger tells later.
        work.outcome = f"given back: {error}"
        log.warning("the broker or Redis: %s", error)
    except CannotBeDone as why:
        log.warning("%s", why)
        _bisect(work, str(why))
    except Exception as error:
        # A bug, or a machine that misbehaves. The unit stays in the ledger, so nothing is lost by going on.
        log.exception("unexpected %s", type(error).__name__)
        _bisect(work, f"{type(error).__name__}: {error}")
    finally:
        work.ended()
        log.debug("%s", work.outcome or "done")


def _bisect(work: Unit, why: str) -> None:
    try:
        outcome = bisect(work, why)
    except Exception as error:
        work.outcome = f"given back: {error}"
        log.warning("not halved: %s", error)
        return
    work.outcome = outcome or f"failed: {why}"
    if outcome is None:
        with suppress(redis.RedisError):
            work.ctx.ledger.trouble("unexpected", f"{work.name}: {why}")
