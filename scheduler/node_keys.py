"""A session's key for the other nodes of a Gluster pool: put there, proved to follow bricks and nothing else, taken back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from replication.errors import SeamarkError, UsageError
from replication.gluster.glusterd import volume_info
from replication.remote import pem
from replication.remote.nodes import ask_bricks, node_options, node_target, nodes_id, operators_options
from scheduler.checks.outcome import Outcome, good

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.gluster.glusterd import VolumeInfo
    from replication.remote.endpoint import SshOptions
    from replication.session import Session, SessionDir


def other_nodes(info: VolumeInfo) -> list[str]:
    """Hosts that have bricks of a volume, but for this one, in the order of the volume's information."""
    return list(dict.fromkeys(brick.host for brick in info.bricks if not brick.local))


def volume_of(session: Session) -> str:
    """Raises UsageError where the primary is no Gluster volume."""
    if session.gluster is None:
        raise UsageError(f"{session.primary} is no Gluster volume: there are no nodes with bricks")
    return session.gluster.volume


def push_to_nodes(place: SessionDir, session: Session, access: SshOptions) -> Iterator[Outcome]:
    """Make a key, put it on each node by the operator's ``access``, prove it. Raises SeamarkError, and then no key is there."""
    volume = volume_of(session)
    hosts = other_nodes(volume_info(volume))
    if not hosts:
        yield good("nodes", "all bricks are on this node: no other one needs a key")
        return
    new = place.nodes_key.with_name("nodes_ed25519.new")
    access = operators_options(session, access)
    done: list[str] = []
    try:
        public = pem.make_key(new)
        for host in hosts:
            file = pem.push_to_node(node_target(session, host), access, nodes_id(session), volume, public)
            done.append(host)
            yield good("node", f"{host}: a key for the bricks of {volume} alone is in {file}")
            yield _proved(session, host, pem.gated(access, new))
        new.replace(place.nodes_key)
    except BaseException:
        for host in done:
            with contextlib.suppress(SeamarkError):
                pem.take_back_from_node(node_target(session, host), access, nodes_id(session))
        raise
    finally:
        new.unlink(missing_ok=True)


def _proved(session: Session, host: str, options: SshOptions) -> Outcome:
    """Raises SeamarkError."""
    target = node_target(session, host)
    bricks = ask_bricks(target, options, volume_of(session))
    holes = pem.holes_in(target, options)
    if holes:
        raise SeamarkError(
            f"sshd on {host} does not hold the key to its limits (it allows: {', '.join(holes)}); it was taken back"
        )
    return good("node", f"{host}: it follows {len(bricks)} bricks, and does nothing else")


def revoke_from_nodes(place: SessionDir, session: Session) -> Iterator[str]:
    """Have the key let in no more; what is to be done by hand where a node cannot be reached. Raises SeamarkError."""
    for host in other_nodes(volume_info(volume_of(session))):
        try:
            pem.revoke(node_target(session, host), node_options(place, session))
        except SeamarkError as error:
            yield (
                f"{error.message}; the key is still let in on {host}: remove the line that ends in "
                f"'seamark-session:{nodes_id(session)}' from authorized_keys of {session.nodes.user} there, and "
                f"~/.local/share/seamark/gate-{nodes_id(session)}.pyz"
            )
