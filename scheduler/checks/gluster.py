"""What a Gluster volume has to have as a primary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.errors import SeamarkError
from replication.gluster.glusterd import volume_info
from scheduler.checks.outcome import Outcome, fail, good, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.session import Session


def check_volume(session: Session) -> Iterator[Outcome]:
    """Its bricks, and those of its options that matter."""
    if session.gluster is None:
        return
    try:
        info = volume_info(session.gluster.volume)
    except SeamarkError as error:
        yield fail("volume", error)
        return
    unseen = [bricks for bricks in info.sets if not any(each.local and not each.arbiter for each in bricks)]
    said = f"{len(info.bricks)} bricks, {len([each for each in info.bricks if each.local])} on this node"
    if unseen:
        where = ", ".join(map(str, unseen[0]))
        yield warn(
            "bricks",
            f"{said}: what changes on {where} is recorded on other nodes only, so changes are found by scanning, which "
            "is slower",
        )
    else:
        yield good("bricks", said)
    if info.options.get("changelog.changelog") == "on":
        yield good("changelog", "on")
    else:
        yield good("changelog", "off: 'create' and the start of a session switch it on (changelog.changelog)")
    if info.options.get("features.ctime", "on") == "off":
        yield warn(
            "ctime",
            "features.ctime is off: each brick has times of its own, so files are compared again that have not "
            f"changed; gluster volume set {info.name} features.ctime on",
        )
