"""What can go wrong on the way to a secondary. Each message says what, where, and what to do."""

from __future__ import annotations

from replication.errors import ExitCode, SeamarkError, TemporaryError


class RemoteError(SeamarkError):
    """The secondary cannot be used, and trying again does not help by itself."""


class Unreachable(TemporaryError, RemoteError):
    """No connection: name, route, port, or a server that does not answer in time."""


class LinkLost(TemporaryError, RemoteError):
    """There was a connection, and it is gone, or the far side has stopped answering."""


class HostKeyUnknown(RemoteError):
    """Nobody has vouched for this host's key yet."""


class HostKeyChanged(RemoteError):
    """The host shows another key than the known one (or a revoked one). Never accepted."""


class AuthFailed(RemoteError):
    """The host lets none of our keys in."""


class NoPython(RemoteError):
    """The secondary has no Python that is new enough."""


class NoRsync(RemoteError):
    """There is no rsync, here or there."""


class NoTar(RemoteError):
    """There is no GNU tar, here or there."""


class AgentFailed(RemoteError):
    """The secondary agent was started and did not come up; the message has its last words."""

    exit_code = ExitCode.ERROR


def reason_of(error: BaseException) -> str:
    """An error in a few words; some of paramiko's have none of their own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().rstrip(".") or {"EOFError": "the connection was closed"}.get(
        type(error).__name__, type(error).__name__
    )
