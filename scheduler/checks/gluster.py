"""What a Gluster volume has to have as a primary, on each node of its pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.errors import SeamarkError
from replication.gluster.glusterd import VolumeInfo, volume_info
from replication.remote.nodes import ask_bricks, node_options, node_target
from scheduler.checks.outcome import Outcome, fail, good, warn
from scheduler.node_keys import other_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.session import Session, SessionDir

_QUIET_S = 60.0  # a brick at work rolls its changelog every 15 s, unless it was told otherwise


def check_volume(place: SessionDir, session: Session, *, gets_nodes_key: bool = False) -> Iterator[Outcome]:
    """Its bricks, and those of its options that matter. ``gets_nodes_key``: a key for other nodes is about to be made."""
    if session.gluster is None:
        return
    try:
        info = volume_info(session.gluster.volume)
    except SeamarkError as error:
        yield fail("volume", error)
        return
    yield _check_bricks(info, reached=gets_nodes_key or place.nodes_key.exists())
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
    if place.nodes_key.exists():
        for host in other_nodes(info):
            yield _check_node(place, session, info, host)


def _check_bricks(info: VolumeInfo, *, reached: bool) -> Outcome:
    others = other_nodes(info)
    said = f"{len(info.bricks)} bricks, {len([each for each in info.bricks if each.local])} on this node"
    unseen = [bricks for bricks in info.sets if not any(each.local and not each.arbiter for each in bricks)]
    if reached and others:
        return good("bricks", f"{said}, the others followed on {', '.join(others)}")
    if unseen:
        where = ", ".join(map(str, unseen[0]))
        return warn(
            "bricks",
            f"{said}: what changes on {where} is recorded on other nodes only, so changes are found by scanning, which "
            "is slower; with a key for these nodes they are followed: create … --push-nodes, push-pem NAME --nodes",
        )
    return good("bricks", said)


def _check_node(place: SessionDir, session: Session, info: VolumeInfo, host: str) -> Outcome:
    """Whether it can be reached, lets the key in, has the bricks that it should have, and these record."""
    try:
        found = ask_bricks(node_target(session, host), node_options(place, session), info.name)
    except SeamarkError as error:
        return fail("node", error)
    mine = [brick for brick in info.bricks if brick.host == host]
    for brick in mine:
        there = found.get(brick.path)
        if there is None:
            return fail(
                "node",
                f"{host} says that {brick.path} is no brick of it: is it in the same pool? gluster pool list",
            )
        if not there.recording:
            return fail(
                "node", f"{brick} records nothing: gluster volume set {info.name} changelog.changelog on"
            )
        rollover = float(info.options.get("changelog.rollover-time", 15))
        if there.beat_s > max(_QUIET_S, 4 * rollover):
            return warn(
                "node",
                f"{brick} has ended, or hangs, for {there.beat_s:.0f} s: gluster volume start {info.name} force",
            )
    return good("node", f"{host}: reached, {len(mine)} bricks, and they record")
