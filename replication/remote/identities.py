"""The keys we may log in with: of the ssh-agent, of --identity, of the ssh configuration."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import PublicBlob, UnknownKeyType

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from typing import Self

    from replication.remote.endpoint import Endpoint


def candidates(endpoint: Endpoint) -> Generator[tuple[str, paramiko.PKey | str]]:
    """(name, key) in the order to try them; in place of a key, why it cannot be used.

    The agent's copy of a key file comes before the file, which may be encrypted. A key named by its
    .pub file alone is looked for in the agent. Close the iterator: it holds a connection to the agent.
    """
    with _SocketAgent(endpoint.agent_socket) as agent:
        keys = {key.blob: key for key in agent.get_keys()}
        done: set[bytes | None] = set()
        for path in endpoint.identities:
            blob = _public_part(path)
            if blob in keys and blob not in done:
                done.add(blob)
                yield f"{path} (ssh-agent)", keys[blob]
        for blob, key in keys.items() if endpoint.use_agent_keys else ():
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


class _SocketAgent(paramiko.agent.AgentSSH):
    """paramiko's agent looks at SSH_AUTH_SOCK only; this one takes any socket (IdentityAgent), or none.

    An agent that does not answer has no keys.
    """

    def __init__(self, path: str | None) -> None:
        super().__init__()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(10)
        if path:
            with contextlib.suppress(OSError, paramiko.SSHException, EOFError):
                self._connection.connect(path)
                self._connect(self._connection)  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()
