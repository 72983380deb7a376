"""A key of its own for a session: made here, and put on the secondary so that it can serve that session only.

The words are Gluster's (push-pem). What limits the key is secondary/gate.py; how its line gets into
authorized_keys there is secondary/authorized.py, run through the access that the operator has.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from replication.errors import SeamarkError
from replication.private import private_dir
from replication.remote.bundle import build_bricknode
from replication.remote.errors import RemoteError
from replication.remote.launch import open_secondary
from replication.remote.ssh import connect

if TYPE_CHECKING:
    from pathlib import Path

    from replication.remote.bundle import Bundle
    from replication.remote.endpoint import SshOptions
    from replication.remote.ssh import Connection
    from replication.remote.target import Target

# paramiko's status of a channel whose command was answered by the gate: secondary/gate.py.
_REFUSED_STATUS = 94
_WAIT_S = 30.0


def make_key(path: Path) -> str:
    """A new ed25519 key in ``path`` (0600), as OpenSSH writes it; its public half. Raises SeamarkError."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    try:
        private_dir(path.parent)
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(private)
            file.flush()
            os.fsync(fd)
    except OSError as error:
        raise SeamarkError(f"cannot write {path}: {error.strerror}") from None
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def push_to_node(target: Target, access: SshOptions, session_id: str, volume: str, public: str) -> str:
    """Let ``public`` follow the bricks of a volume on a node of its pool. The file in which that stands. Raises as ``push``."""
    words = [b"install", session_id.encode(), volume.encode(), public.encode()]
    return str(_tell(target, access, words, build_bricknode())["file"])


def push(target: Target, access: SshOptions, session_id: str, public: str) -> dict[str, Any]:
    """Let ``public`` serve ``target.path`` there, by the operator's ``access``. Gives `file` and `line`.

    Raises RemoteError, and what open_secondary raises.
    """
    return _tell(
        target, access, [b"install", session_id.encode(), target.path.hex().encode(), public.encode()]
    )


def take_back(target: Target, access: SshOptions, session_id: str) -> None:
    """Remove the session's line and gate there, by the operator's ``access``. Raises RemoteError."""
    _tell(target, access, [b"revoke", session_id.encode()])


def take_back_from_node(target: Target, access: SshOptions, session_id: str) -> None:
    """Remove the session's line and gate on a node. Raises RemoteError."""
    _tell(target, access, [b"revoke", session_id.encode()], build_bricknode())


def _tell(
    target: Target, access: SshOptions, arguments: list[bytes], bundle: Bundle | None = None
) -> dict[str, Any]:
    link = open_secondary(target, access, arguments, bundle)
    try:
        answer: dict[str, Any] = json.loads(link.reader.readline(1 << 20))
    finally:
        link.close()
    if "error" in answer:
        raise RemoteError(f"{target.login}: {answer['error']}")
    return answer


def revoke(target: Target, options: SshOptions) -> None:
    """Have the key itself see to it that it is let in no more. Raises RemoteError, SeamarkError."""
    connection = connect(target, options)
    try:
        status, said = _run(connection, "seamark-revoke")
    finally:
        connection.close()
    if status != 0:
        raise RemoteError(f"{target.login} did not remove the key: {said or f'exit status {status}'}")


def holes_in(target: Target, options: SshOptions) -> list[str]:
    """What the key can do that it should not be able to; empty as it should be. Raises RemoteError."""
    unit = "/.seamark/staging/unit.0"
    attempts = {
        "a command": "id",
        "a shell": "",
        "a command behind ours": f"seamark-has gzip; id {unit}",
        "another directory": f"seamark-agent 1 {b'/etc'.hex()}",
        "rsync from there": "rsync --server --sender -logDtpre.LsfxCIvu . /etc/",
        "rsync to elsewhere": "rsync --server -pISe.LsfxCIvu . /tmp/",
        "rsync out of its place": f"rsync --server -pISe.LsfxCIvu . {unit}/../../../../new/",
        "scp": "scp -t /tmp",
        "another volume": "seamark-bricks 2 /etc",
    }
    connection = connect(target, options)
    try:
        found = [
            name for name, command in attempts.items() if _run(connection, command)[0] != _REFUSED_STATUS
        ]
        if _forwards(connection):
            found.append("port forwarding")
        return found
    finally:
        connection.close()


def _run(connection: Connection, command: str) -> tuple[int, str]:
    """Exit status of a command (-1: none came), and the last that it said to standard error."""
    channel = connection.execute(command)
    try:
        channel.settimeout(_WAIT_S)
        channel.shutdown_write()
        said = b""
        while part := channel.recv_stderr(8192):
            said = (said + part)[-8192:]
        done = channel.status_event.wait(_WAIT_S)
        return (channel.exit_status if done else -1), said.decode("utf-8", "replace").strip()
    except OSError:
        return -1, ""
    finally:
        channel.close()


def _forwards(connection: Connection) -> bool:
    import paramiko

    try:
        connection.transport.open_channel(
            "direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 1), timeout=_WAIT_S
        ).close()
    except paramiko.ChannelException as error:
        return error.code != 1  # RFC 4254, SSH_OPEN_ADMINISTRATIVELY_PROHIBITED
    except (paramiko.SSHException, EOFError, OSError):
        return False
    return True


def gated(access: SshOptions, key: Path) -> SshOptions:
    """The same way there, by the session's own key."""
    return replace(access, identity=key, gated=True, ask_password=None)
