"""The lease of a session: which of the nodes that see its primary is at work. Kept in their Redis, and expendable.

It only saves two nodes from getting into each other's way. What protects the secondary from a holder that slept,
or from two at once, is its own fence: an epoch, and whose it is (secondary/owner.py).
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from replication.secondary.boot import boot_id

if TYPE_CHECKING:
    import redis

    from replication.session import Session, SessionDir

TTL_S = 6.0  # without a renewal it is anybody's after this
RENEW_S = 1.0
# ARGV: "take", "look" or "free"; the token; the value; milliseconds until it expires.
_SCRIPT = """
local held = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local ours = held and string.sub(held, 1, #ARGV[2] + 1) == ARGV[2] .. ' '
if ARGV[1] == 'take' and (not held or held == '' or ours) then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
  return {ARGV[3], tonumber(ARGV[4])}
elseif ARGV[1] == 'free' and ours then
  redis.call('SET', KEYS[1], '', 'PX', ARGV[4])
  return {'', tonumber(ARGV[4])}
end
return {held, left}
"""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at work, and since when (seconds since the epoch, on its own clock)."""

    node: str
    instance: str
    since: float


class Seen(NamedTuple):
    """A lease as it stands. ``left_s``: until it expires; ``freed``: whoever had it gave it back."""

    ours: bool
    holder: Holder | None
    left_s: float
    freed: bool


class Lease:
    """The lease of one session, as one node sees it."""

    def __init__(
        self, client: redis.Redis, place: SessionDir, session: Session, node: str, ttl_s: float = TTL_S
    ) -> None:
        self.ttl_s = ttl_s
        self._run = client.register_script(_SCRIPT)
        # Of one volume: who shows another one under the same paths shall not wait, but be refused by the secondary.
        self._key = f"seamark:{{{session.id}}}:lease:{session.root}"
        self.instance = session.instance
        self.node = node
        self.token = _token(place, session)
        self.since = 0.0

    def take(self) -> Seen:
        """Take it, or renew it, unless somebody else has it. Raises redis.RedisError."""
        self.since = self.since or time.time()
        holder = Holder(node=self.node, instance=self.instance, since=self.since)
        seen = self._do("take", f"{self.token} {msgspec.json.encode(holder).decode()}")
        if not seen.ours:
            self.since = 0.0
        return seen

    def look(self) -> Seen:
        """Who has it. Raises redis.RedisError."""
        return self._do("look")

    def free(self) -> None:
        """Give it back, if it is ours: the next one need not wait until it expires. Raises redis.RedisError."""
        self._do("free")
        self.since = 0.0

    def _do(self, what: str, value: str = "") -> Seen:
        held, left = self._run(keys=[self._key], args=[what, self.token, value, round(self.ttl_s * 1000)])
        token, _, text = (held or b"").decode().partition(" ")
        holder = msgspec.json.decode(text, type=Holder) if text else None
        return Seen(token == self.token, holder, max(0, left) / 1000, held == b"")


def _token(place: SessionDir, session: Session) -> str:
    """The same for each run of one state directory until the host boots, and for no other, be it a copy of it.

    Two such runs are never alive at the same time: they hold a lock on this host. So one that was killed goes on
    at once.
    """
    found = os.stat(place.path)
    text = f"{session.instance} {boot_id()} {found.st_dev} {found.st_ino}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
