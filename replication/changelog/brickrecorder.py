"""The recorder of a Gluster volume: its bricks record, and their changelogs are followed.

Each record becomes one of the open segment, as that of any recorder: it only says "look here again". All bricks are
followed, those of other nodes by a program there (replication/bricknode) where the session has a key for them. Of a set of
bricks that hold the same files each records when it has applied a change, so whichever of them a look is answered by, a
record comes after the change; and if one of them dies, or its node, the others are followed already.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from replication.changelog.brickmembers import Member, RemoteMember
from replication.changelog.brickplace import Place
from replication.changelog.bricks import Bricks, Nodes
from replication.changelog.bricksince import SinceScan
from replication.changelog.brickstatus import BrickStatus
from replication.changelog.bricktwins import Missing
from replication.changelog.gather import Gather, Node
from replication.changelog.memory import RootState
from replication.changelog.record import Kind, Record
from replication.changelog.recorder import OWN, RecorderUnavailable
from replication.errors import SeamarkError
from replication.gluster import single
from replication.gluster.bricks import TAKEN
from replication.gluster.glusterd import VolumeInfo
from replication.gluster.mount import GFID
from replication.session_file import replace_file
from replication.volume.gluster import VolumeAway
from replication.volume.identity import ROOT_GFID

log = logging.getLogger(__name__)

# A change is recorded when it is done: so much later, if the disk is slow. Both times are of one clock.
_UNDER_WAY_NS = 60 * 10**9

E, M, D, B = int(Kind.E), int(Kind.M), int(Kind.D), int(Kind.B)


class BrickRecorder:
    """Follows the bricks of ``volume``. ``root``: the session's root in a mount of it; ``kept``: where places are kept.

    ``nodes``: how other nodes are reached; without it only the bricks of this one are followed. Raises
    RecorderUnavailable where those that can be are not enough to see everything, VolumeAway where they cannot be followed at the moment.
    """

    mode = "changelogs"
    overflows = 0

    def __init__(
        self,
        volume: str,
        root: str,
        kept: Path,
        gather: Gather,
        on_gap: Callable[[str], None],
        nodes: Nodes | None = None,
    ) -> None:
        self.events = 0
        self._root, self._kept = root, kept
        self._gather, self._on_gap = gather, on_gap
        self._root_fd = -1
        self._since = SinceScan(kept.with_name("bricks.since"))
        self._status = BrickStatus(kept.parent)
        self._poll = select.epoll()
        self._poll.register(self._since.fd, select.EPOLLIN)
        self.fd = self._poll.fileno()
        self._nodes: dict[bytes, Node] = {}
        self._made: dict[bytes, tuple[Node, bytes]] = {}
        self._beginning = True
        self._missed = False  # while it began
        self._taken: dict[str, Place] = {}
        self._saved: dict[str, Place] = {}
        self._bricks: Bricks | None = None
        try:
            self._root_gfid = os.getxattr(root, GFID)
            self._open_root()
            self._bricks = Bricks(
                volume, nodes, kept.with_name("bricks.rebalance"), self._kept_places(), self._poll, self
            )
        except RecorderUnavailable:
            self.close()
            raise
        except (OSError, SeamarkError) as error:
            self.close()
            raise VolumeAway(f"the bricks of volume {volume} cannot be followed: {error}") from error
        if self._since.pending:
            self._since.elsewhere = set(self._bricks.remote)

    @property
    def bricks(self) -> Bricks:
        assert self._bricks is not None
        return self._bricks

    def close(self) -> None:
        if self._bricks is not None:
            self._bricks.close()
        if self.fd >= 0:
            self._poll.close()
            self._since.close()
        if self._root_fd >= 0:
            os.close(self._root_fd)
        self._bricks, self.fd, self._root_fd = None, -1, -1

    @property
    def uneasy(self) -> bool:
        return any(each.uneasy or not each.followed for each in self.bricks.members)

    def _kept_places(self) -> dict[str, Place]:
        try:
            said = msgspec.json.decode(self._kept.read_bytes(), type=dict[str, Any])
            return {name: Place.of_json(place) for name, place in said.items()}
        except (OSError, ValueError):
            return {}

    def resume(self) -> bool:
        """Go on where the last recorder ended, if all bricks still have what they recorded since."""
        resumed = self.bricks.resume()
        self._beginning = False
        if rebalanced := self.bricks.was_rebalanced():
            self.bricks.rebalance_told()
        return resumed and not rebalanced and not self._missed

    # ---- what bricks tell

    def gap(self, reason: str) -> None:
        if self._beginning:
            self._missed = True
        else:
            self._on_gap(reason)

    def lost(self, reason: str, since_ns: int | None) -> None:
        """What a changelog does not have changed the bricks' inodes all the same."""
        if since_ns is None:
            self.gap(reason)
        else:
            log.info("changelogs are not whole (%s): what changed since is searched for", reason)
            self.look_since(since_ns - _UNDER_WAY_NS)

    def restarted(self, member: Member, since_ns: int | None) -> None:
        """A brick was ended, perhaps between a change and its record; others of its set may have recorded that change as well."""
        log.info("brick %s was started again", member.brick)
        if (missing := self.bricks.twins.restarted(member, since_ns)) is not None:
            self.missing(missing)

    def missing(self, missing: Missing) -> None:
        """What was under way when a brick was killed changed its inodes, and those of the directories in which names did: it is searched for."""
        if missing.since_ns is None:
            self.gap("brick restarted")
        else:
            log.info("what it may not have recorded is searched for, by the ctimes of the bricks' inodes")
            self.look_since(missing.since_ns - _UNDER_WAY_NS)

    def began(self, member: RemoteMember, *, resumed: bool) -> None:
        log.info("brick %s is followed from %s", member.brick, "where it was" if resumed else "now on")
        if not resumed:
            self.gap("recorder")
        if self._since.wanted is not None and str(member.brick) in self._since.elsewhere:
            self.bricks.node_of(member).search(member, self._since.wanted)

    def searched(self, member: RemoteMember) -> None:
        self._since.elsewhere.discard(str(member.brick))

    def informed(self, info: VolumeInfo, file: str, file_ns: int) -> None:
        single.note(self._kept.parent, info, file, file_ns)

    def rebalanced(self, since_ns: int) -> None:
        """Files were moved between bricks since then, which none of them records."""
        self.look_since(since_ns)

    def forgotten(self, name: str) -> None:
        self._since.elsewhere.discard(name)

    def take(self, record: Record) -> None:
        self.events += 1
        gfid = record.gfid or b""
        if record.parent is None or record.name is None:
            self._object(gfid, int(record.kinds))
            return
        if self._is_above(record.parent):
            return
        node = self._node(record.parent)
        if node.gfid == ROOT_GFID and (record.name == OWN or record.name.startswith(TAKEN)):
            return
        self._gather.add(node, record.name, E)
        if record.first:
            self._made[gfid] = node, record.name
        if record.directory and self.bricks.alone:  # of several, some may have it made anew
            self._gather.add_object(gfid, gfid, B)

    # ---- recording

    def drain(self, full: Callable[[], bool]) -> bool:
        self.bricks.look()
        whole = self.bricks.drain(full)
        for gfid in self._since.some([each.brick.path for each in self.bricks.local.values()]):
            self.events += 1
            self._object(gfid, M | D)
        return whole

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
            # D of a directory is what a search says, of names that clients may see no trace of in the root's times.
            if self._root_changed() or kinds & D:
                self._gather.add(self._node(gfid), b"", kinds)
        else:
            self._gather.add_object(gfid, gfid, kinds)

    def _node(self, gfid: bytes) -> Node:
        node = self._nodes.get(gfid)
        if node is None:
            node = self._nodes[gfid] = Node(None, b"", b"")
            node.handle, node.gfid = gfid, ROOT_GFID if gfid == self._root_gfid else gfid
        return node

    def seen_until(self, now_ns: int) -> int:
        return self.bricks.seen_until(now_ns)

    def before_close(self, *, whole: bool) -> bool:
        """Add to the open segment what changed again unrecorded. False: that is not all of it yet."""
        self._made.clear()
        compared = {name: each.follower.compare(whole=whole) for name, each in self.bricks.local.items()}
        told = self.bricks.round_now() if whole else True
        self.bricks.round()
        self._nodes = {gfid: node for gfid, node in self._nodes.items() if node.names is not None}
        self._drop_searches()
        self._since.cover()
        # What was not compared yet would be missed by who goes on from there, and what is in doubt be believed.
        places = {
            name: each.place
            if compared.get(name, True) and not self.bricks.twins.in_doubt(name)
            else self._taken.get(name)
            for name, each in {**self.bricks.local, **self.bricks.remote}.items()
        }
        self._taken = {name: place for name, place in places.items() if place is not None}
        seen = self.bricks.all_are_seen()
        self._status.write(self.bricks.rows(), self.bricks.waits_for)
        return all(compared.values()) and told and seen and not self._since.pending

    def _drop_searches(self) -> None:
        """What cannot be searched, or is on a node that is away, is not waited for where another brick of the set was searched."""
        local, remote, since = self.bricks.local, self.bricks.remote, self._since
        lacking = since.elsewhere | {name for name, each in local.items() if each.brick.path in since.unread}
        for name in lacking:
            member = local[name] if name in local else remote[name]
            twins = (
                each
                for each in self.bricks.members
                if each.number == member.number and self.bricks.records(each)
            )
            if name in remote and member.followed:
                continue
            if any(str(each.brick) not in lacking for each in twins):
                since.elsewhere.discard(name)
                since.unread.discard(member.brick.path)

    def explained(self, until_ns: int) -> None:
        self._since.explained(until_ns)

    def look_since(self, since_ns: int | None) -> None:
        """Gluster sets no ctime for an extended attribute, a hole or fallocate, nor for a writer whose clock is behind."""
        self._since.begin(since_ns, self.bricks.remote)
        assert self._since.wanted is not None
        for member in self.bricks.remote.values():
            if member.followed:
                self.bricks.node_of(member).search(member, self._since.wanted)

    def look(self, path: bytes, names: list[bytes], kinds: int) -> None:
        node = self._node(os.getxattr(os.path.join(os.fsencode(self._root), path), GFID))
        for name in names:
            self._gather.add(node, name, kinds)

    def applied(self, serial: int) -> None:
        """Nothing has to be remembered for what is not applied yet: objects are found by gfid."""

    def next_segment(self, serial: int) -> None:
        """Everything until the last ``before_close`` is in the changelog of ours."""
        self._since.settle()
        self.bricks.covered()
        if self._taken != self._saved:
            said = {name: place.as_json() for name, place in self._taken.items()}
            replace_file(self._kept, msgspec.json.encode(said).decode())
            self._saved = self._taken
