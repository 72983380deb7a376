"""All bricks of a volume, and who tells what they record: this node, and others of the pool."""

from __future__ import annotations

import logging
import math
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from replication.changelog.brickctimes import ctime_of, handle_of
from replication.changelog.brickmembers import Hub, LocalMember, Member, RemoteMember, RemoteNode
from replication.changelog.brickplace import Place
from replication.changelog.brickrebalance import RebalanceWatch
from replication.changelog.brickstatus import BrickRow, rows
from replication.changelog.bricktwins import Missing, Twins
from replication.changelog.inotify import Inotify
from replication.changelog.recorder import RecorderUnavailable
from replication.errors import SeamarkError
from replication.gluster.glusterd import Brick, VolumeInfo, rebalance_runs, volume_file, volume_info

log = logging.getLogger(__name__)

_SAY_S = (
    3.0  # a changelog is missing for a moment whenever it is rolled, and a node is asked anew after seconds
)
_INFO_S = 2.0  # between looks whether the volume has other bricks
_QUIET = 3  # rollovers that a brick may miss
_ROLLOVER_S = 15  # Gluster's default of changelog.rollover-time
_BEGIN_S = 15.0  # so long are other nodes waited for at the start
_ROUND_S = 5.0  # and at a barrier
_TURN_S = 0.05

Nodes = Callable[[str], list[str]]  # what starts the program on a node


class Listener(Hub, Protocol):
    def missing(self, missing: Missing) -> None: ...

    def forgotten(self, name: str) -> None: ...

    def rebalanced(self, since_ns: int) -> None: ...

    def informed(self, info: VolumeInfo, file: str, file_ns: int) -> None: ...


class Bricks:
    """``reach``: how other nodes are reached; None: only the bricks of this one are followed. ``places``: by brick, as HOST:PATH.
    ``rebalance``: where is kept what was seen of one.

    ``poll`` is told of every descriptor that becomes readable when a brick records something. Raises OSError,
    SeamarkError, and RecorderUnavailable where the bricks that can be followed are not enough to see everything.
    """

    def __init__(
        self, volume: str, reach: Nodes | None, rebalance: Path, places: dict[str, Place], poll: select.epoll,
        hub: Listener,
    ) -> None:  # fmt: skip
        self._volume, self._reach, self._places, self._poll, self._hub = volume, reach, places, poll, hub
        self._inotify = Inotify()
        poll.register(self._inotify.fd, select.EPOLLIN)
        self.local: dict[str, LocalMember] = {}
        self.remote: dict[str, RemoteMember] = {}
        self._nodes: dict[str, RemoteNode] = {}
        self._watched: dict[
            str, tuple[int, int]
        ] = {}  # connections to nodes: descriptors, and which one it is
        self.twins = Twins(lambda: self.members, self.records)
        self._unseen_since = math.inf  # time.monotonic()
        self._told = ""
        self._file = volume_file(volume)
        self._info_at = self._changed_ns()
        self._rebalance = RebalanceWatch(os.path.dirname(self._file), rebalance)
        self._rebalanced = (
            False  # one that has ended is taken care of as soon as a gap is in the changelog of ours
        )
        self._info = self._covered(volume_info(volume))
        hub.informed(self._info, self._file, self._info_at)
        for number, brick in self._followable():
            self._follow(brick, number)
        self._looked_at = time.monotonic()

    def close(self) -> None:
        self._rebalance.close()
        for each in self.local.values():
            each.follower.tail.close()
        for node in self._nodes.values():
            node.close()
        self._inotify.close()

    @property
    def members(self) -> list[Member]:
        return [*self.local.values(), *self.remote.values()]

    @property
    def alone(self) -> bool:
        """Whether the volume is one brick."""
        return len(self._info.bricks) == 1

    # ---- which there are

    def _covered(self, info: VolumeInfo) -> VolumeInfo:
        """Raises RecorderUnavailable where changes are made that no brick that can be followed records."""
        for bricks in info.sets:
            if self._reach is None and not any(brick.local and not brick.arbiter for brick in bricks):
                raise RecorderUnavailable(
                    f"no brick of this node records what happens to {', '.join(map(str, bricks))}, and there is no key for "
                    "other nodes: seamark push-pem NAME --nodes"
                )
        return info

    def _followable(self) -> list[tuple[int, Brick]]:
        return [
            (number, brick)
            for number, each in enumerate(self._info.sets)
            for brick in each
            if brick.local or self._reach is not None
        ]

    def _follow(self, brick: Brick, number: int) -> None:
        """Raises OSError; SeamarkError for a node that ssh has no words for."""
        name = str(brick)
        if brick.local:
            member = LocalMember(brick, number, self._hub, self.moved)
            member.watch = self._inotify.watch(member.follower.tail.directory)
            self.local[name] = member
            return
        assert self._reach is not None
        if brick.host not in self._nodes:
            self._nodes[brick.host] = RemoteNode(brick.host, self._reach(brick.host), self._hub)
        self.remote[name] = RemoteMember(brick, number, self._places.get(name))
        self._nodes[brick.host].add(self.remote[name])

    def _forget(self, name: str) -> None:
        self._places.pop(name, None)
        if name in self.local:
            gone = self.local.pop(name)
            self._inotify.forget(gone.watch)
            gone.follower.tail.close()
        else:
            left = self.remote.pop(name)
            node = self._nodes[left.brick.host]
            node.remove(left)
            if not node.members:
                self._unwatch(left.brick.host)
                node.close()
                del self._nodes[left.brick.host]
        self._hub.forgotten(name)

    def resume(self) -> bool:
        """Go on from the places, if all bricks still have what they recorded since.

        A node that is away is not waited for long: its bricks go on from their places when it is back.
        """
        until = time.monotonic() + _BEGIN_S
        while any(not each.followed for each in self.remote.values()) and time.monotonic() < until:
            self._pump(lambda: False)
            self._poll.poll(_TURN_S)
        resumed = set(self._places) == {str(each.brick) for each in self.members}
        try:
            resumed = resumed and all(
                each.follower.tail.resume(self._places[name]) for name, each in self.local.items()
            )
        except OSError as error:
            log.warning("a brick's changelog cannot be read: %s", error)
            resumed = False
        if not resumed:
            for each in self.local.values():
                each.follower.tail.begin_at_end()
        return resumed

    def look(self) -> None:
        """Bricks may be added, removed or replaced. Raises RecorderUnavailable."""
        if time.monotonic() < self._looked_at + _INFO_S:
            return
        self._looked_at = time.monotonic()
        if (missing := self.twins.missing()) is not None:
            self._hub.missing(missing)
        if not self._rebalanced and self.was_rebalanced():
            self._hub.gap("recorder")
            self.rebalance_told()
        try:
            if (changed := self._changed_ns()) == self._info_at:
                return
            self._info = self._covered(volume_info(self._volume))
            self._hub.informed(self._info, self._file, changed)
            self._info_at = changed
        except (OSError, SeamarkError) as error:
            log.warning("what bricks volume %s has cannot be asked: %s", self._volume, error)
            return
        wanted = {str(brick): (number, brick) for number, brick in self._followable()}
        for name in {*self.local, *self.remote} - set(wanted):
            self._forget(name)
            self._hub.gap("recorder")  # it may have recorded more until it went
        known = {str(each.brick): each for each in self.members}
        for name, (number, brick) in wanted.items():
            if name in known:
                known[name].brick, known[name].number = brick, number
                continue
            try:
                self._follow(brick, number)
            except (OSError, SeamarkError) as error:
                self._info_at = 0  # it may just be starting
                log.warning("brick %s cannot be followed yet: %s", brick, error)
                continue
            if brick.local:
                log.info("brick %s is followed from now on", brick)
                self._hub.gap("recorder")

    def was_rebalanced(self) -> bool:
        """Whether a rebalance has ended that was not seen to end before; what it may have touched is then searched for.

        It is told again by whoever records next, unless ``covered`` was called.
        """
        try:
            since_ns = self._rebalance.ended_since()
            # Here; other nodes have files to move of their own.
            if since_ns is None or (self._elsewhere() and rebalance_runs(self._volume)):
                return False
            self._hub.rebalanced(since_ns)
        except (OSError, SeamarkError) as error:
            log.warning("volume %s: whether a rebalance has ended is not known: %s", self._volume, error)
            return False
        log.info("volume %s: a rebalance has ended: what it moved is compared", self._volume)
        return True

    def rebalance_told(self) -> None:
        """What comes next into the changelog of ours comes after the gap."""
        self._rebalanced = True

    def covered(self) -> None:
        """What was told until now, gaps among it, is in the changelog of ours. Raises SeamarkError."""
        if self._rebalanced:
            self._rebalance.note()
            self._rebalanced = False

    def _elsewhere(self) -> bool:
        return any(not brick.local for brick in self._info.bricks)

    def moved(self, member: Member, gfid: bytes) -> bool:
        """Whether an object that this brick has no more may be on one of another set."""
        return any(
            not each.brick.local or ctime_of(handle_of(each.brick.path, gfid)) is not None
            for each in self.members
            if each.number != member.number
        )

    def _changed_ns(self) -> int:
        return os.stat(self._file).st_mtime_ns

    # ---- whether all is seen

    def records(self, member: Member) -> bool:
        """Whether it tells of all that happens to its set."""
        return not member.brick.arbiter and self.lives(member)

    def lives(self, member: Member) -> bool:
        """Whether it is followed, and its process is there."""
        if not member.followed or member.why:
            return False
        rollover = float(self._info.options.get("changelog.rollover-time", _ROLLOVER_S))
        return member.quiet_s() < _QUIET * rollover + 1

    def all_are_seen(self) -> bool:
        """Whether nothing can happen to the volume that no brick that is followed records."""
        unseen = self._unseen()
        if not unseen:
            if self._told:
                log.info("volume %s: the mark waits for no brick any more", self._volume)
            self._unseen_since, self._told = math.inf, ""
            return True
        self._unseen_since = min(self._unseen_since, time.monotonic())
        if time.monotonic() > self._unseen_since + _SAY_S and unseen != self._told:
            log.warning("the mark waits for %s", unseen)
            self._told = unseen
        return False

    @property
    def waits_for(self) -> str:
        """What has not been seen for a while; empty: all is."""
        return self._told

    def _unseen(self) -> str:
        """A brick of a set that nobody tells of, and why; empty: there is none."""
        for each in self.members:
            if each.followed and not each.recording:
                return f"brick {each.brick}, which records nothing: is changelog.changelog on?"
        for number, bricks in enumerate(self._info.sets):
            mine = [each for each in self.members if each.number == number]
            if any(self.records(each) for each in mine):
                continue
            if silent := [each for each in mine if each.why]:
                return f"brick {silent[0].brick}: {silent[0].why}"
            # While all of its bricks are down, and known to be, nothing happens to it.
            names = {str(each.brick) for each in mine}
            if others := [brick for brick in bricks if str(brick) not in names]:
                return f"brick {others[0]}, which is on another node, and not followed"
        return ""

    def seen_until(self, now_ns: int) -> int:
        """See Recorder."""
        return min(
            [now_ns, *(each.seen_ns for each in self.remote.values() if each.followed and not each.why)]
        )

    def rows(self) -> list[BrickRow]:
        """Of all bricks, in the order of the volume's information."""
        known = {str(each.brick): each for each in self.members}
        return rows(self._info, known, self.lives, self._heard)

    def _heard(self, member: Member) -> float:
        return time.time() if member.brick.local else self._nodes[member.brick.host].link.heard

    # ---- reading

    def drain(self, full: Callable[[], bool]) -> bool:
        """Take in what all have recorded; False when stopped because ``full()``, with more to come."""
        self._inotify.clear()
        whole = True
        for member in list(self.local.values()):
            try:
                whole = member.follower.poll(full) and whole
                member.why = ""
            except OSError as error:
                if not member.why:
                    log.warning("brick %s: its changelog cannot be read: %s", member.brick, error)
                member.why = f"its changelog cannot be read: {error.strerror}"
        return self._pump(full) and whole

    def _pump(self, full: Callable[[], bool]) -> bool:
        """Take in what other nodes have told."""
        whole = True
        for host, node in list(self._nodes.items()):
            before = node.link.why
            whole = node.pump(full) and whole
            if self._watched.get(host) != (node.link.fd, node.link.opened):
                self._unwatch(host)
                if node.link.fd >= 0:
                    self._poll.register(node.link.fd, select.EPOLLIN)
                    self._watched[host] = node.link.fd, node.link.opened
            if node.link.why and node.link.why != before:
                log.warning("node %s does not tell what its bricks record: %s", host, node.link.why)
        return whole

    def _unwatch(self, host: str) -> None:
        fd, _ = self._watched.pop(host, (-1, 0))
        if fd >= 0 and all(fd != other for other, _ in self._watched.values()):
            try:
                self._poll.unregister(fd)
            except OSError:
                pass  # closed, it is watched no more

    def round(self) -> None:
        """Ask other nodes for everything that is recorded by now."""
        for node in self._nodes.values():
            node.round()

    def round_now(self) -> bool:
        """The same, and take it in; False: one has not answered in time."""
        wanted = {host: node.round(whole=True) for host, node in self._nodes.items() if node.link.up}
        until = time.monotonic() + _ROUND_S
        while time.monotonic() < until:
            self._pump(lambda: False)
            left = [host for host, number in wanted.items() if self._nodes[host].answered < number]
            if not any(self._nodes[host].link.up for host in left):
                return True
            self._poll.poll(_TURN_S)
        return False

    def node_of(self, member: RemoteMember) -> RemoteNode:
        return self._nodes[member.brick.host]
