"""The primary of a session, as the kind of volume that it is."""

from __future__ import annotations

import os

from replication.session import Session
from replication.volume.directory import DirectoryVolume
from replication.volume.gluster import GlusterVolume
from replication.volume.storage import GLUSTER, shared_kind


def open_volume(session: Session, identity: str = "") -> DirectoryVolume:
    """``identity``: of its root, as it was before. Raises VolumeError.

    A directory on a mount of Gluster's that somebody else made is looked at like a Gluster volume.
    """
    tree = os.fsencode(session.tree)
    if session.gluster is not None:
        return GlusterVolume(tree)  # which volume is mounted there was looked at by who mounted it
    try:
        kind = shared_kind(session.tree)
    except OSError:
        kind = ""  # the volume says what is wrong
    return GlusterVolume(tree, identity) if kind == GLUSTER else DirectoryVolume(tree, identity)
