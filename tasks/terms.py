"""What the primary's node tells data workers on other hosts: all that they need of what it alone knows.

It stands in Redis beside the ledger, for one epoch, and is renewed every second: a worker elsewhere has neither the
progress database nor the session's file. It holds names, numbers and settings of how to send; never a path, a
host, a way to get there, or a command: those are of the worker's own host (replication/joined.py).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from replication.quantities import Timetable
from replication.secondary.filters import Filters
from replication.settings import SyncMethod, check
from replication.windows import zone
from tasks.canvas import node

if TYPE_CHECKING:
    from replication.session import Session
    from tasks.context import Context

_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,255}$")]
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{0,64}$")]


class Sending(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of how data is sent, as the session has them at the moment."""

    sync_method: SyncMethod
    compression: Literal["auto", "on", "off"]
    bandwidth: Timetable
    timezone: str
    filters: tuple[str, ...]

    def __post_init__(self) -> None:
        Filters(self.filters)
        zone(self.timezone)

    def applied_to(self, session: Session) -> Session:
        schedule = msgspec.structs.replace(session.schedule, timezone=self.timezone)
        return msgspec.structs.replace(
            session, sync_method=self.sync_method, compression=self.compression, bandwidth=self.bandwidth,
            filters=self.filters, schedule=schedule,
        )  # fmt: skip


class Terms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See above. ``index_id``, ``gen`` and ``boot`` are those of the secondary as the primary's node knows it."""

    epoch: int
    node: _Name  # ends the names of the queues that lead back
    held: str | None  # why nothing is to be sent at the moment
    volume: _Hex  # identity of the primary's root, by which the secondary knows it
    root_ino: int
    index_id: str
    gen: int
    boot: str
    sending: Sending


def terms_of(ctx: Context, epoch: int) -> Terms:
    """What is true on the primary's node now. Raises OSError when the primary is not there."""
    session = ctx.session
    index_id, gen, boot = ctx.progress.secondary()
    return Terms(
        epoch=epoch, node=node(), held=ctx.holding(), volume=session.root or session.id, root_ino=os.stat(session.tree).st_ino,
        index_id=index_id, gen=gen, boot=boot,
        sending=Sending(
            sync_method=session.sync_method, compression=session.compression, bandwidth=session.bandwidth,
            timezone=session.schedule.timezone, filters=session.filters,
        ),
    )  # fmt: skip


def encode_terms(terms: Terms) -> bytes:
    return msgspec.json.encode(terms, enc_hook=str)


def decode_terms(text: bytes) -> Terms:
    """What encode_terms wrote. Raises SettingsError on anything else."""
    try:
        raw = msgspec.json.decode(text)
    except msgspec.DecodeError:
        raw = None
    return check(raw, "what the primary's node tells", Terms)
