"""The other nodes of a Gluster pool: how a session reaches them, and what one of them says of its bricks."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from replication.bricknode.wire import READY, VERSION, Frames
from replication.errors import SeamarkError
from replication.remote.command import ssh_command
from replication.remote.endpoint import SshOptions
from replication.remote.errors import AuthFailed, RemoteError
from replication.remote.target import Target
from replication.secondary.protocol import AgentError, frame

if TYPE_CHECKING:
    from collections.abc import Mapping

    import paramiko

    from replication.session import Session, SessionDir

_ALIVE_S = 20.0  # a node that says nothing for half of it is given up by ssh
_ANSWER_S = 60.0  # glusterd there is asked, and may be busy


class NodeBrick(NamedTuple):
    """A brick as its node has it. ``beat_s``: since it last rolled its changelog; below 0: it has none."""

    recording: bool
    beat_s: float


def nodes_id(session: Session) -> str:
    """By which these nodes know the session as it is on this one: others may run it too, and each has a key of its own."""
    return hashlib.blake2b(f"{session.id} nodes {session.instance}".encode(), digest_size=16).hexdigest()


def node_target(session: Session, host: str) -> Target:
    return Target(b"/", host, session.nodes.user)


def node_options(place: SessionDir, session: Session) -> SshOptions:
    """By the session's own key for nodes."""
    return SshOptions(
        port=session.nodes.port, identity=place.nodes_key, known_hosts_file=place.known_hosts,
        extra=session.nodes.options, answer_timeout_s=_ALIVE_S, gated=True,
    )  # fmt: skip


def operators_options(session: Session, access: SshOptions) -> SshOptions:
    """How the operator gets there, who gets to the secondary by ``access``."""
    return replace(access, port=session.nodes.port, extra=session.nodes.options, gated=False, run_dir=None)


def bricks_command(volume: str) -> str:
    """What starts the program by its key (bricknode/gate.py)."""
    return f"seamark-bricks {VERSION} {volume}"


def node_command(place: SessionDir, session: Session, host: str) -> list[str]:
    """What starts it, here. Raises SeamarkError."""
    target = node_target(session, host)
    assert session.gluster is not None
    command = ssh_command(target, node_options(place, session))
    return [*command, "--", target.login, bricks_command(session.gluster.volume)]


def ask_bricks(target: Target, options: SshOptions, volume: str) -> Mapping[str, NodeBrick]:
    """The bricks of a volume that are there, by path, as the program there says. Raises SeamarkError."""
    from replication.remote.ssh import connect

    try:
        connection = connect(target, options)
    except AuthFailed:
        raise AuthFailed(
            f"{target.host} does not let the session's key in: seamark push-pem NAME --nodes"
        ) from None
    try:
        channel = connection.execute(bricks_command(volume))
        channel.settimeout(_ANSWER_S)
        channel.sendall(frame({"op": "bricks"}))
        return _answer(channel, target)
    except (OSError, AgentError, KeyError, TypeError, ValueError) as error:
        raise RemoteError(f"{target.host}: its answer makes no sense: {error}") from None
    finally:
        connection.close()


def _answer(channel: paramiko.Channel, target: Target) -> dict[str, NodeBrick]:
    """Raises SeamarkError; OSError, AgentError, KeyError, TypeError, ValueError for what makes no sense."""
    frames, came, until = Frames(), b"", time.monotonic() + _ANSWER_S
    ready = False
    while time.monotonic() < until:
        data = channel.recv(1 << 16)
        if not data:
            said = channel.recv_stderr(8192).decode(errors="replace").strip().splitlines()
            raise SeamarkError(f"{target.host}: {said[-1] if said else 'the connection was closed'}")
        came += data
        if not ready and READY in came:
            ready, came = True, came.partition(READY)[2]
        if not ready:
            continue
        frames.add(came)
        came = b""
        if (got := frames.next()) is not None:
            if got[0]["error"]:
                raise SeamarkError(f"{target.host}: {got[0]['error']}")
            return {
                path: NodeBrick(bool(brick["recording"]), int(brick["beat_ms"]) / 1000)
                for path, brick in dict(got[0]["bricks"]).items()
            }
    raise SeamarkError(f"{target.host} has not answered within {_ANSWER_S:.0f} s")
