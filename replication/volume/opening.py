"""The primary of a session, as the kind of volume that it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from replication.gluster.single import noted
from replication.session import Session
from replication.volume.brick import BrickVolume
from replication.volume.directory import DirectoryVolume
from replication.volume.gluster import GlusterVolume
from replication.volume.storage import GLUSTER, shared_kind

if TYPE_CHECKING:
    from pathlib import Path


def open_volume(session: Session, identity: str = "", changelog: Path | None = None) -> DirectoryVolume:
    """``identity``: of its root, as it was before. Raises VolumeError.

    ``changelog``: where is noted whether one brick is all of it (gluster/single.py): then that is looked at. A directory on a mount of Gluster's that somebody else made is looked at like a Gluster volume.
    """
    tree = os.fsencode(session.tree)
    if session.gluster is not None:
        # Which volume is mounted there was looked at by who mounted it.
        volume = GlusterVolume(tree, changelog=changelog)
        brick = noted(changelog) if changelog is not None else None
        return volume if brick is None else BrickVolume(brick, volume)
    try:
        kind = shared_kind(session.tree)
    except OSError:
        kind = ""  # the volume says what is wrong
    return GlusterVolume(tree, identity) if kind == GLUSTER else DirectoryVolume(tree, identity)
