"""The bricks of a volume as its recorder follows them: those of this node, and those of others, over a connection to each."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from replication.bricknode.wire import decode
from replication.changelog.brickfollow import FollowedBrick
from replication.changelog.brickplace import Place
from replication.changelog.bricksince import Wanted
from replication.changelog.record import Record
from replication.gluster.glusterd import Brick
from replication.gluster.node import NodeLink
from replication.secondary.protocol import AgentError

_FOLLOW_S = 60.0  # glusterd there is asked first, and may be busy
_AGAIN_S = 2.0
_REASONS = {"damaged", "changelog off"}  # of a tail's gaps


class Hub(Protocol):
    """Who is told what bricks record."""

    def take(self, record: Record) -> None: ...

    def gap(self, reason: str) -> None: ...

    def lost(self, reason: str, since_ns: int | None) -> None: ...

    def restarted(self, member: Member, since_ns: int | None) -> None: ...

    def began(self, member: RemoteMember, *, resumed: bool) -> None: ...

    def searched(self, member: RemoteMember) -> None: ...


class Member:
    """One brick. ``number``: of the set that it is in. ``why``: it is not followed at the moment, or cannot be read."""

    why = ""

    def __init__(self, brick: Brick, number: int) -> None:
        self.brick = brick
        self.number = number

    followed: bool  # what it records comes here
    recording: bool  # it has a changelog open, or had when it ended
    uneasy: bool
    place: Place | None

    def quiet_s(self) -> float:
        """Since it last rolled its changelog, as it does every rollover-time whatever happens, and not when it has ended."""
        raise NotImplementedError


class LocalMember(Member):
    """A brick of this node. Raises OSError where its changelog cannot be followed."""

    followed = True

    def __init__(self, brick: Brick, number: int, hub: Hub, moved: Callable[[Member, bytes], bool]) -> None:
        super().__init__(brick, number)
        self.follower = FollowedBrick(
            brick.path, hub.take, hub.lost, partial(hub.restarted, self), partial(moved, self)
        )
        self.follower.tail.begin_at_end()
        self.watch = -1

    @property
    def recording(self) -> bool:  # type: ignore[override]
        return self.follower.tail.is_recording()

    @property
    def uneasy(self) -> bool:  # type: ignore[override]
        return self.follower.uneasy

    @property
    def place(self) -> Place:  # type: ignore[override]
        return self.follower.tail.place()

    def quiet_s(self) -> float:
        try:
            return (time.time_ns() - self.follower.tail.beat_ns()) / 1e9
        except OSError:
            return math.inf


class RemoteMember(Member):
    """A brick of another node. ``place``: what came until there has been taken; ``seen_ns``: all that it had recorded by then, too."""

    def __init__(self, brick: Brick, number: int, place: Place | None) -> None:
        super().__init__(brick, number)
        self.place = place
        self.search = 0
        self.seen_ns = 0
        self.recording = True
        self._beat_at = -math.inf
        self.lost("not reached yet")

    def lost(self, why: str) -> None:
        self.followed = self.uneasy = False
        self.why = _shown(why)
        self.retry_at = time.monotonic() + _AGAIN_S

    def told(self, said: dict[str, Any], seen_ns: int) -> None:
        """The answer to a round. Raises ValueError, KeyError, TypeError, OverflowError."""
        place = Place.of_json(said["place"])
        beat_ms = int(said["beat_ms"])
        self._beat_at = time.monotonic() - beat_ms / 1000 if beat_ms >= 0 else -math.inf
        self.recording, self.uneasy = bool(said["recording"]), bool(said["uneasy"])
        self.why = _shown(str(said["unread"]))
        # What was not compared yet would be missed by who goes on from there.
        if said["compared"]:
            self.place = place
            self.seen_ns = self.seen_ns if self.why else seen_ns

    def quiet_s(self) -> float:
        return time.monotonic() - self._beat_at if self.followed else math.inf


def _when(ago_ns: Any) -> int | None:
    """By this node's clock. Raises TypeError, ValueError, OverflowError."""
    return None if ago_ns is None else time.time_ns() - int(ago_ns)


def _shown(text: str) -> str:
    """What another node says, as it may be shown on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])


class RemoteNode:
    """Another node, and the bricks of it that are followed."""

    def __init__(self, host: str, command: list[str], hub: Hub) -> None:
        self.link = NodeLink(host, command)
        self.members: dict[str, RemoteMember] = {}
        self._hub = hub
        self._asked: dict[int, int] = {}  # rounds without an answer, and when they began (ns)
        self._number = 0
        self.answered = 0  # the last round that was

    def add(self, member: RemoteMember) -> None:
        self.members[member.brick.path] = member
        if self.link.up:
            self._follow(member)

    def remove(self, member: RemoteMember) -> None:
        del self.members[member.brick.path]
        if self.link.up:
            self.link.say(op="forget", brick=member.brick.path)

    def _follow(self, member: RemoteMember) -> None:
        place = None if member.place is None else member.place.as_json()
        member.retry_at = math.inf
        self.link.ask(_FOLLOW_S, op="follow", brick=member.brick.path, place=place)

    def round(self, *, whole: bool = False) -> int:
        """Ask for everything that is recorded by now; the number of the round. ``whole``: all of it, and even while one is under way."""
        if self.link.up and (whole or not self._asked):
            self._number += 1
            self._asked[self._number] = time.time_ns()
            self.link.ask(op="round", n=self._number, whole=whole)
        return self._number

    def search(self, member: RemoteMember, wanted: Wanted) -> None:
        """Have it look for what changed: see SinceScan."""
        member.search += 1
        now_ns = time.time_ns()
        self.link.say(
            op="search", brick=member.brick.path, n=member.search, unexplained_ago_ns=now_ns - wanted.unexplained_ns,
            ago_ns=None if wanted.since_ns is None else now_ns - wanted.since_ns,
        )  # fmt: skip

    def pump(self, full: Callable[[], bool]) -> bool:
        """Take in what has come; False when stopped because ``full()``, with more to come. See also ``link.fd``."""
        self.link.open()
        was_up = self.link.up
        if not full():
            self.link.read()
        if self.link.up and not was_up:
            self._asked.clear()
            for member in self.members.values():
                self._follow(member)
        whole = True
        try:
            while (whole := not full()) and (got := self.link.next()) is not None:
                self._heed(*got)
        except (AgentError, KeyError, TypeError, ValueError, OverflowError) as error:
            self.link.drop(f"it does not speak as it should: {error}")
        if not self.link.up:
            self._asked.clear()
            for member in self.members.values():
                member.lost(self.link.why)
        else:
            for member in self.members.values():
                if not member.followed and time.monotonic() > member.retry_at:
                    self._follow(member)
        return whole

    def _heed(self, said: dict[str, Any], payload: bytes) -> None:
        """Raises AgentError, KeyError, TypeError, ValueError, OverflowError for what makes no sense."""
        if "round" in said:
            self._heed_round(said)
            return
        member = self.members.get(str(said["brick"]))
        if "began" in said or ("error" in said and not said.get("unasked")):
            self.link.answered()
        if member is None:
            return  # it was removed meanwhile
        if "error" in said:
            member.lost(str(said["error"]))
        elif "began" in said:
            member.followed, member.why, member.place = (
                True,
                "it was not read yet",
                Place.of_json(said["place"]),
            )
            self._hub.began(member, resumed=bool(said["began"]))
            self.round(whole=True)
        elif "records" in said:
            for record in decode(payload):
                self._hub.take(record)
        elif "place" in said:
            member.place = Place.of_json(said["place"])
        elif "gap" in said:
            self._hub.lost(said["gap"] if said["gap"] in _REASONS else "recorder", _when(said["ago_ns"]))
        elif "restarted" in said:
            self._hub.restarted(member, _when(said["ago_ns"]))
        elif said.get("searched") == member.search:
            self._hub.searched(member)

    def _heed_round(self, said: dict[str, Any]) -> None:
        number = int(said["round"])
        asked_ns = self._asked.pop(number)
        self.link.answered()
        self.answered = number
        for path, told in dict(said["bricks"]).items():
            if path in self.members:
                self.members[path].told(told, asked_ns)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.link.close()
