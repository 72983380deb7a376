"""What gsyncd, GlusterFS's own geo-replication, has left of a session: whether it runs, and up to when it has replicated.

Source: syncdaemon/resource.py and gsyncdstatus.py of GlusterFS. gsyncd notes its mark (stime) on the roots of the primary's bricks,
``trusted.glusterfs.<primary volume>.<secondary volume>.stime``: seconds and nanoseconds, 32 bits each, big-endian.
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from typing import NamedTuple
from xml.etree import ElementTree as ET

from replication.errors import LockedError, NotFoundError, SeamarkError, UsageError
from replication.gluster.glusterd import Brick, VolumeInfo, program

_PATIENCE_S = 60.0
_NONE = "No active geo-replication sessions"
_AT_REST = {"stopped", "created"}
_SECONDARY = (
    "session_secondary",
    "session_slave",
    "session_subordinate",
)  # it was renamed; "…ssh://HOST::VOLUME:ID"
_STIME = struct.Struct(">II")


class Worker(NamedTuple):
    """A worker of gsyncd: whose secondary it has, and its status, as `gluster volume geo-replication status` has them."""

    secondary: str
    status: str


def xattr_of(primary: str, secondary: str, what: str = "stime") -> str:
    """The xattr's name. Both are ids of volumes."""
    return f"trusted.glusterfs.{primary}.{secondary}.{what}"


def workers_of(volume: str) -> list[Worker]:
    """Those of all sessions of a primary. Raises SeamarkError."""
    words = [program("gluster"), "--mode=script", "volume", "geo-replication", volume, "status"]
    try:
        plain = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        if _NONE in plain.stdout + plain.stderr:
            return []
        done = subprocess.run([*words, "--xml"], capture_output=True, timeout=_PATIENCE_S, check=False)
        return workers_in(ET.fromstring(done.stdout))  # noqa: S314 - of our own glusterd
    except subprocess.TimeoutExpired:
        raise SeamarkError(f"glusterd has not answered within {_PATIENCE_S:.0f} s") from None
    except ET.ParseError:
        said = (plain.stderr or plain.stdout).strip().splitlines()
        raise SeamarkError(
            f"the status of geo-replication of volume {volume} cannot be had: {said[-1] if said else 'gluster says nothing'}"
        ) from None


def workers_in(answer: ET.Element) -> list[Worker]:
    """The same, of what `gluster … status --xml` says."""
    found = []
    for session in answer.iter("session"):
        name = next((text for tag in _SECONDARY if (text := session.findtext(tag))), "")
        found += [Worker(name, pair.findtext("status") or "") for pair in session.findall("pair")]
    return found


def check_stopped(volume: str, secondary_id: str) -> None:
    """Raises LockedError where gsyncd replicates to the same secondary still."""
    for worker in workers_of(volume):
        mine = worker.secondary.endswith(secondary_id) or not worker.secondary
        if mine and worker.status.lower() not in _AT_REST:
            name = worker.secondary.rpartition("ssh://")[2].rpartition(":")[0]
            raise LockedError(
                f"gsyncd's session of volume {volume} is {worker.status or 'at work'}: stop it first, with "
                f"gluster volume geo-replication {volume} {name or 'HOST::VOLUME'} stop"
            )


def stime_ns(info: VolumeInfo, secondary_id: str) -> int:
    """Up to when all is on the secondary, by gsyncd: the least of all sets of bricks. Raises SeamarkError."""
    marks = []
    for bricks in info.sets:
        local = [brick for brick in bricks if brick.local]
        if not local:
            raise UsageError(
                f"gsyncd's mark of {', '.join(map(str, bricks))} is on another node: take over where every set of bricks has one"
            )
        # Of a set the one that is behind counts; one that never was active has none.
        found = [mark for brick in local if (mark := _read(brick, info.id, secondary_id)) is not None]
        if not found:
            raise NotFoundError(
                f"brick {local[0]} has no mark of gsyncd for this secondary: its session never ended a crawl, or another "
                "secondary is meant; --adopt takes over what is there by comparing it"
            )
        marks.append(min(found))
    return min(marks)


def _read(brick: Brick, primary: str, secondary: str) -> int | None:
    try:
        value = os.getxattr(brick.path, xattr_of(primary, secondary))
        seconds, nanoseconds = _STIME.unpack(value)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise SeamarkError(f"brick {brick}: {error.strerror}") from None
    except struct.error:
        return None
    return int(seconds) * 10**9 + int(nanoseconds)


def hand_back(info: VolumeInfo, secondary_id: str, mark_ns: int) -> list[Brick]:
    """Have gsyncd go on from a mark of ours; the bricks of this node, which say so now. Raises SeamarkError."""
    value = _STIME.pack(*divmod(mark_ns, 10**9))
    local = [brick for brick in info.bricks if brick.local]
    for brick in local:
        for what in ("stime", "entry_stime"):
            try:
                os.setxattr(brick.path, xattr_of(info.id, secondary_id, what), value)
            except OSError as error:
                raise SeamarkError(f"brick {brick}: {error.strerror}") from None
    return local
