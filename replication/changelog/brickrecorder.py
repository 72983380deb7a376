"""The recorder of a Gluster volume: its bricks record, and their changelogs are followed.

Each record becomes one of the open segment, as that of any recorder: it only says "look here again". All bricks of
this node are followed. Of a set of bricks that hold the same files each records when it has applied a change, so whichever
of them a look is answered by, a record comes after the change; and if one of them dies the others are followed already.

A brick records content (D) and metadata (M) of an object once in each of its files. What happens to it after that, until
the next file begins, shows in the ctime of the brick's own inode: that is compared whenever a segment is closed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from replication.changelog.brickfollowed import Followed
from replication.changelog.brickrebalance import RebalanceWatch
from replication.changelog.bricksince import SinceScan
from replication.changelog.bricktail import BrickTail, Place
from replication.changelog.gather import Gather, Node
from replication.changelog.inotify import Inotify
from replication.changelog.memory import RootState
from replication.changelog.record import Kind, Record
from replication.changelog.recorder import OWN, RecorderUnavailable
from replication.errors import SeamarkError
from replication.gluster.glusterd import Brick, VolumeInfo, volume_file, volume_info
from replication.gluster.mount import GFID
from replication.session_file import replace_file
from replication.volume.identity import ROOT_GFID

log = logging.getLogger(__name__)

E, M, D = int(Kind.E), int(Kind.M), int(Kind.D)
_EACH_TIME = 1000  # objects that are compared at each segment; more of them once a second
_COMPARE_S = 1.0
_OFF_S = 2.0  # a changelog is missing for a moment whenever it is rolled
_INFO_S = 2.0  # between looks whether the volume has other bricks
_QUIET = 3  # rollovers that a brick may miss
_ROLLOVER_S = 15  # Gluster's default of changelog.rollover-time


class BrickRecorder:
    """Follows the local bricks of ``volume``. ``root``: the session's root in a mount of it; ``kept``: where places are kept.

    Raises RecorderUnavailable where the bricks of this node are not enough to see everything.
    """

    mode = "changelogs"
    overflows = 0

    def __init__(
        self, volume: str, root: str, kept: Path, gather: Gather, on_gap: Callable[[str], None]
    ) -> None:
        self.events = 0
        self._volume, self._root, self._kept = volume, root, kept
        self._gather, self._on_gap = gather, on_gap
        self._root_fd = -1
        self._inotify = Inotify()
        self._since = SinceScan(kept.with_name("bricks.since"))
        self._poll = select.epoll()
        for fd in (self._inotify.fd, self._since.fd):
            self._poll.register(fd, select.EPOLLIN)
        self.fd = self._poll.fileno()
        self._followed: dict[str, Followed] = {}
        self._nodes: dict[bytes, Node] = {}
        self._made: dict[bytes, tuple[Node, bytes]] = {}
        self._beginning = True
        self._off_since = math.inf  # time.monotonic() since which a brick has no changelog open
        self._told = False
        self._rebalance: RebalanceWatch | None = None
        self._compared_at = 0.0
        self._taken: dict[str, Place] = {}
        self._saved: dict[str, Place] = {}
        try:
            self._file = volume_file(volume)
            self._info_at = self._changed_ns()
            self._rebalance = RebalanceWatch(os.path.dirname(self._file), kept.with_name("bricks.rebalance"))
            self._info = _covered(volume_info(volume))
            self._root_gfid = os.getxattr(root, GFID)
            self._open_root()
            for number, brick in self._local():
                self._follow(brick, number)
        except (OSError, SeamarkError) as error:
            self.close()
            raise RecorderUnavailable(f"the bricks of volume {volume} cannot be followed: {error}") from error
        self._looked_at = time.monotonic()

    def close(self) -> None:
        if self._rebalance is not None:
            self._rebalance.close()
        for each in self._followed.values():
            each.tail.close()
        if self.fd >= 0:
            self._poll.close()
            self._inotify.close()
            self._since.close()
        if self._root_fd >= 0:
            os.close(self._root_fd)
        self.fd = self._root_fd = -1

    @property
    def uneasy(self) -> bool:
        return any(each.waiting for each in self._followed.values())

    # ---- bricks

    def _local(self) -> list[tuple[int, Brick]]:
        return [(n, brick) for n, each in enumerate(self._info.sets) for brick in each if brick.local]

    def _follow(self, brick: Brick, number: int) -> None:
        tail = BrickTail(brick.path, self._gap, lambda: self._restarted(brick.path))
        self._followed[brick.path] = Followed(brick, number, tail, self._inotify.watch(tail.directory))
        tail.begin_at_end()

    def resume(self) -> bool:
        """Go on where the last recorder ended, if all bricks still have what they recorded since."""
        self._beginning = False
        if self._was_rebalanced():
            return False
        try:
            kept = msgspec.json.decode(self._kept.read_bytes(), type=dict[str, Place])
        except (OSError, msgspec.DecodeError):
            return False
        if set(kept) != set(self._followed):
            return False
        try:
            whole = [each.tail.resume(kept[path]) for path, each in self._followed.items()]
        except OSError as error:
            log.warning("a brick's changelog cannot be read: %s", error)
            whole = [False]
        if not all(whole):
            for each in self._followed.values():
                each.tail.begin_at_end()
        return all(whole)

    def _look_at_volume(self) -> None:
        """Bricks may be added, removed or replaced."""
        if time.monotonic() < self._looked_at + _INFO_S:
            return
        self._looked_at = time.monotonic()
        if self._was_rebalanced():
            self._gap("recorder")
        try:
            if (changed := self._changed_ns()) == self._info_at:
                return
            self._info = _covered(volume_info(self._volume))
            self._info_at = changed
        except (OSError, SeamarkError) as error:
            log.warning("what bricks volume %s has cannot be asked: %s", self._volume, error)
            return
        local = {brick.path: (number, brick) for number, brick in self._local()}
        for path in set(self._followed) - set(local):
            gone = self._followed.pop(path)
            self._inotify.forget(gone.watch)
            gone.tail.close()
            self._gap("recorder")  # it may have recorded more until it went
        for path, (number, brick) in local.items():
            if path in self._followed:
                self._followed[path].brick, self._followed[path].number = brick, number
                continue
            try:
                self._follow(brick, number)
            except OSError as error:
                self._followed.pop(path, None)
                self._info_at = 0  # it may just be starting
                log.warning("brick %s cannot be followed yet: %s", brick, error)
                continue
            log.info("brick %s is followed from now on", brick)
            self._gap("recorder")

    def _was_rebalanced(self) -> bool:
        """Whether a rebalance has ended that was not seen to end before; what it may have touched is then searched for."""
        assert self._rebalance is not None
        since_ns = self._rebalance.ended_since()
        if since_ns is None:
            return False
        log.info("volume %s: a rebalance has ended: what it moved is compared", self._volume)
        self._since.begin(since_ns)
        self._rebalance.note()
        return True

    def _changed_ns(self) -> int:
        return os.stat(self._file).st_mtime_ns

    def _gap(self, reason: str) -> None:
        if not self._beginning:
            self._on_gap(reason)

    def _restarted(self, path: str) -> None:
        """A brick was ended, perhaps between a change and its record; others of its set have recorded that change as well."""
        followed = self._followed[path]
        log.info("brick %s was started again", followed.brick)
        if not self._has_twin(followed):
            self._gap("brick restarted")

    def _has_twin(self, followed: Followed) -> bool:
        """Whether another brick of its set records the same changes."""
        return any(
            each.number == followed.number
            and each is not followed
            and not each.brick.arbiter
            and self._is_alive(each)
            for each in self._followed.values()
        )

    def _is_alive(self, followed: Followed) -> bool:
        rollover = float(self._info.options.get("changelog.rollover-time", _ROLLOVER_S))
        try:
            return time.time_ns() - followed.tail.beat_ns() < (_QUIET * rollover + 1) * 10**9
        except OSError:
            return False

    def _all_are_seen(self) -> bool:
        """Whether nothing can happen to the volume that no brick of this node records."""
        off = [each.brick for each in self._followed.values() if not each.tail.is_recording()]
        if not off:
            self._off_since = math.inf
        else:
            since, self._off_since = self._off_since, min(self._off_since, time.monotonic())
            if since < time.monotonic() - _OFF_S and not self._told:
                log.warning(
                    "brick %s records nothing: is changelog.changelog on? The mark waits for it", off[0]
                )
            self._told = since < time.monotonic() - _OFF_S
            return False
        self._told = False
        if any(each.unread and not self._has_twin(each) for each in self._followed.values()):
            return False
        for number, bricks in enumerate(self._info.sets):
            mine = [
                each for each in self._followed.values() if each.number == number and not each.brick.arbiter
            ]
            elsewhere = any(not brick.local for brick in bricks)
            if elsewhere and not any(self._is_alive(each) for each in mine):
                return False
        return True

    # ---- recording

    def drain(self, full: Callable[[], bool]) -> bool:
        self._inotify.clear()
        self._look_at_volume()
        whole = True
        for followed in list(self._followed.values()):
            try:
                whole = followed.tail.poll(partial(self._take, followed), followed.rolled, full) and whole
                followed.unread = False
            except OSError as error:
                if not followed.unread:
                    log.warning("brick %s: its changelog cannot be read: %s", followed.brick, error)
                followed.unread = True
        for gfid in self._since.some(list(self._followed)):
            self.events += 1
            self._object(gfid, M | D)
        return whole

    def _take(self, followed: Followed, record: Record) -> None:
        self.events += 1
        gfid = record.gfid or b""
        if record.parent is None or record.name is None:
            known, ctime = followed.objects.get(gfid, (0, -1))
            followed.objects[gfid] = known | int(record.kinds), ctime
            self._object(gfid, int(record.kinds))
            return
        if self._is_above(record.parent):
            return
        node = self._node(record.parent)
        if node.gfid == ROOT_GFID and record.name == OWN:
            return
        self._gather.add(node, record.name, E)
        if record.first:
            self._made[gfid] = node, record.name

    def _open_root(self) -> None:
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1
        self._root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._root_state = RootState(self._root_fd)

    def _root_changed(self) -> bool:
        """Whether it is not only the mark that was written to the root."""
        try:
            return self._root_state.changed()
        except OSError:  # the mount was made anew, or is away
            with contextlib.suppress(OSError):
                self._open_root()
            return True

    def _is_above(self, gfid: bytes) -> bool:
        """Whether it is the volume's root, where the session's is a directory below that."""
        return gfid == ROOT_GFID != self._root_gfid

    def _object(self, gfid: bytes, kinds: int) -> None:
        made = self._made.get(gfid)
        if made is not None and kinds & D:
            self._gather.add(*made, D)
            kinds &= ~D
        if not kinds or self._is_above(gfid):
            return
        if gfid == self._root_gfid:
            if self._root_changed():
                self._gather.add(self._node(gfid), b"", kinds)
        else:
            self._gather.add_object(gfid, gfid, kinds)

    def _node(self, gfid: bytes) -> Node:
        node = self._nodes.get(gfid)
        if node is None:
            node = self._nodes[gfid] = Node(None, b"", b"")
            node.handle, node.gfid = gfid, ROOT_GFID if gfid == self._root_gfid else gfid
        return node

    def before_close(self, *, whole: bool) -> bool:
        """Add to the open segment what changed again unrecorded. False: that was not looked at yet (see the module)."""
        self._made.clear()
        count = sum(each.waiting for each in self._followed.values())
        if count > _EACH_TIME and not whole and time.monotonic() < self._compared_at + _COMPARE_S:
            return False
        self._compared_at = time.monotonic()
        everyone = list(self._followed.values())
        for followed in everyone:
            for gfid, kinds in followed.changed_again(everyone):
                self._object(gfid, kinds)
        self._nodes = {gfid: node for gfid, node in self._nodes.items() if node.names is not None}
        self._taken = {path: each.tail.place() for path, each in self._followed.items()}
        return self._all_are_seen() and not self._since.pending

    def look_since(self, since_ns: int | None) -> None:
        """Gluster sets no ctime for an extended attribute, a hole or fallocate, nor for a writer whose clock is behind."""
        self._since.begin(since_ns)

    def look(self, path: bytes, names: list[bytes], kinds: int) -> None:
        node = self._node(os.getxattr(os.path.join(os.fsencode(self._root), path), GFID))
        for name in names:
            self._gather.add(node, name, kinds)

    def applied(self, serial: int) -> None:
        """Nothing has to be remembered for what is not applied yet: objects are found by gfid."""

    def next_segment(self, serial: int) -> None:
        """Everything until the last ``before_close`` is in the changelog of ours."""
        if self._taken != self._saved:
            replace_file(self._kept, msgspec.json.encode(self._taken).decode())
            self._saved = self._taken


def _covered(info: VolumeInfo) -> VolumeInfo:
    """Raises RecorderUnavailable where changes are made that no brick of this node records."""
    for bricks in info.sets:
        if not any(brick.local and not brick.arbiter for brick in bricks):
            raise RecorderUnavailable(
                f"no brick of this node records what happens to {', '.join(map(str, bricks))}"
            )
    return info
