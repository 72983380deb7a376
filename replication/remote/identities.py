"""The keys we may log in with: of the ssh-agent, of --identity, of the ssh configuration."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import PublicBlob, UnknownKeyType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from replication.remote.endpoint import Endpoint


def candidates(endpoint: Endpoint) -> Iterator[tuple[str, paramiko.PKey | str]]:
    """(name, key) in the order to try them; in place of a key, why it cannot be used.

    The agent's copy of a key file comes before the file, which may be encrypted. A key named by its
    .pub file alone is looked for in the agent.
    """
    agent = _agent_keys(endpoint.agent_socket)
    done: set[bytes] = set()
    for path in endpoint.identities:
        blob = _public_part(path)
        if blob is not None and blob in agent and blob not in done:
            done.add(blob)
            yield f"{path} (ssh-agent)", agent[blob]
    if endpoint.use_agent_keys:
        for blob, key in agent.items():
            if blob not in done:
                done.add(blob)
                yield f"{key.comment or key.get_name()} (ssh-agent)", key
    for path in endpoint.identities:
        if path.exists() and _public_part(path) not in done:
            yield str(path), load_key(path)


def load_key(path: Path) -> paramiko.PKey | str:
    """A private key with its certificate, or why it cannot be used."""
    try:
        return paramiko.PKey.from_path(path)
    except UnknownKeyType:
        return "a kind of key that cannot be used from a file"
    except (paramiko.PasswordRequiredException, TypeError):
        return "encrypted; add it to the ssh-agent"
    except OSError as error:
        return error.strerror or "unreadable"
    except (paramiko.SSHException, ValueError, UnsupportedAlgorithm):
        return "not a private key"


def _public_part(path: Path) -> bytes | None:
    public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
    with contextlib.suppress(OSError, ValueError, paramiko.SSHException):
        blob: bytes = PublicBlob.from_file(str(public)).key_blob
        return blob
    return None


def _agent_keys(path: str | None) -> dict[bytes, paramiko.AgentKey]:
    """The keys that the agent behind a socket holds; none where there is no agent that answers."""
    if not path:
        return {}
    agent = _SocketAgent()
    try:
        agent.attach(path)
    except (OSError, paramiko.SSHException, EOFError):
        return {}
    return {key.blob: key for key in agent.get_keys()}


class _SocketAgent(paramiko.agent.AgentSSH):
    """paramiko's agent looks at SSH_AUTH_SOCK only; this one takes any socket (IdentityAgent)."""

    _lock = threading.Lock()

    def attach(self, path: str) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        try:
            connection.connect(os.fspath(path))
            self._connect(connection)  # type: ignore[attr-defined]
        except BaseException:
            connection.close()
            raise
