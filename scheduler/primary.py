"""Having the primary at hand: a Gluster volume is mounted for as long as a session, or a command, looks at it."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from replication.errors import SeamarkError
from replication.gluster.glusterd import set_option, volume_info
from replication.gluster.mount import GlusterMount
from replication.private import private_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.session import Session

log = logging.getLogger("seamark.primary")
# Of a changelog's other settings the defaults are right: what a changelog is written to is read at once, so its intervals
# need not be short. The marker (geo-replication.indexing) is not needed.
_CHANGELOG = "changelog.changelog"


@contextlib.contextmanager
def present(session: Session) -> Iterator[GlusterMount | None]:
    """The primary can be looked at meanwhile. Yields the mount, if one is needed. Raises SeamarkError."""
    if session.gluster is None:
        yield None
        return
    mount = GlusterMount(session.gluster, Path(session.mount))
    try:
        private_dir(mount.where.parent)
        mount.start()
        yield mount
    finally:
        mount.stop()


def is_recorded(volume: str) -> bool:
    """Whether the bricks of a Gluster volume record what changes. Raises SeamarkError."""
    return volume_info(volume).options.get(_CHANGELOG) == "on"


def have_recorded(session: Session) -> bool:
    """Switch the changelog of a Gluster volume on; False where it was on, or is not needed. Raises SeamarkError."""
    if session.gluster is None or is_recorded(volume := session.gluster.volume):
        return False
    try:
        set_option(volume, _CHANGELOG, "on")
    except SeamarkError as error:
        raise SeamarkError(f"volume {volume}: its changelog cannot be switched on: {error.message}") from None
    log.info("volume %s: its bricks record changes from now on (%s on)", volume, _CHANGELOG)
    return True
