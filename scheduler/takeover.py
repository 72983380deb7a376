"""From gsyncd, GlusterFS's own geo-replication, to Seamark, and back: by the mark that each of them keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.errors import SeamarkError, UsageError
from replication.gluster import gsyncd
from replication.gluster.glusterd import volume_info
from replication.private import private_dir
from replication.progress import Progress
from replication.remote.launch import open_secondary
from replication.remote.look import client_of, ssh_options
from replication.remote.target import Target, parse_target

if TYPE_CHECKING:
    from replication.gluster.glusterd import Brick, VolumeInfo
    from replication.remote.endpoint import SshOptions
    from replication.session import Session, SessionDir


def gsyncds_mark(session: Session, access: SshOptions) -> int:
    """Up to when gsyncd, which must be stopped, has replicated to the secondary, ns. Raises SeamarkError."""
    target = parse_target(session.secondary)
    info = _primary(session, target)
    secondary_id = _id_of(target, access)
    gsyncd.check_stopped(info.name, secondary_id)
    return gsyncd.stime_ns(info, secondary_id)


def begin_from(place: SessionDir, mark_ns: int) -> None:
    """What changed on the primary since then is compared, whatever it looks like. Raises SeamarkError."""
    private_dir(place.path)
    progress = Progress(place.progress)
    try:
        # Not as our mark: it becomes true when all was looked at once.
        progress.inherit(0, mark_ns)
    finally:
        progress.close()


def hand_back(place: SessionDir, session: Session) -> tuple[int, list[Brick]]:
    """Have gsyncd go on from our mark; that, and the bricks which say so. Raises SeamarkError."""
    target = parse_target(session.secondary)
    info = _primary(session, target)
    progress = Progress(place.progress)
    try:
        brick = progress.brick()
    finally:
        progress.close()
    if not brick.marked:
        raise SeamarkError(
            f"session {place.name} has no mark that gsyncd could go on from: its first crawl never ended"
        )
    secondary_id = _id_of(target, ssh_options(place, session))
    gsyncd.check_stopped(info.name, secondary_id)
    return brick.stime_ns, gsyncd.hand_back(info, secondary_id, brick.stime_ns)


def _primary(session: Session, target: Target) -> VolumeInfo:
    primary, secondary = session.gluster, target.volume
    if primary is None or secondary is None or primary.subdir or secondary.subdir:
        raise UsageError(
            "gsyncd replicates whole volumes: give gluster://HOST/VOLUME for both primary and secondary"
        )
    return volume_info(primary.volume)


def _id_of(target: Target, access: SshOptions) -> str:
    link = open_secondary(target, access)
    try:
        found = client_of(link).survey(may_try=False).get("volume_id")
    finally:
        link.close()
    if not found:
        raise SeamarkError(f"secondary {target}: glusterd does not say there which volume it is")
    return str(found)
