"""SECONDARY as the command line has it: a local path, ``[user@]host:/path``, or ``gluster://[USER@]HOST/VOLUME[/SUBDIR]``.

The rule is rsync's: a colon before the first slash means a host. ``./a:b`` is local. A Gluster volume is reached on the
HOST that its address names, where the secondary agent mounts it (secondary/mounting.py): by ssh, unless that is this host.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from replication.errors import UsageError
from replication.gluster.address import SCHEME, GlusterAddress, is_here, parse_address
from replication.secondary.mounting import place_of

_REMOTE = re.compile(
    r"^(?:(?P<user>[^/@:]+(?:@[^/@:]+)*)@)?(?:\[(?P<v6>[^\]/]*)\]|(?P<host>[^/:@\[\]]*)):(?P<path>.*)$",
    re.DOTALL,
)
# A name that begins with a hyphen would be read as an option by ssh; white space is never part of one.
_HOST = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
_V6 = re.compile(r"^[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?$")
_USER = re.compile(r"^[^\s\x00-\x1f\x7f'\"`$;&|<>(){}\\-][^\s\x00-\x1f\x7f'\"`$;&|<>(){}\\]*$")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a secondary is. ``path`` is absolute; ``host`` is None for a local path.

    ``volume``: the Gluster volume that is mounted there at ``path``, or above it.
    """

    path: bytes
    host: str | None = None
    user: str | None = None
    volume: GlusterAddress | None = None

    @property
    def is_remote(self) -> bool:
        return self.host is not None

    @property
    def login(self) -> str:
        """``user@host`` for ssh, without brackets. Raises ValueError for a local target."""
        if self.host is None:
            raise ValueError("a local target has no login")
        return f"{self.user}@{self.host}" if self.user else self.host

    def __str__(self) -> str:
        if self.volume is not None:
            return str(self.volume)
        path = os.fsdecode(self.path)
        if self.host is None:
            return path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{path}" if self.user else f"{host}:{path}"


def parse_target(text: str | bytes) -> Target:
    """Read SECONDARY. A relative local path is taken from the working directory.

    Raises UsageError with a line that says what to write instead.
    """
    text = os.fsdecode(text)
    if not text or "\0" in text:
        raise UsageError("the secondary is empty: give a directory, or [user@]host:/path")
    if text.startswith(SCHEME):
        return _parse_volume(text)
    colon, slash = text.find(":"), text.find("/")
    bracketed = _REMOTE.match(text) if "[" in text[: slash if slash >= 0 else None] else None
    if colon < 0 or (0 <= slash < colon and bracketed is None):
        return Target(_normal(os.fsencode(os.path.join(os.getcwd(), text))))
    return _parse_remote(text)


def _parse_volume(text: str) -> Target:
    address = parse_address(text, user_too=True)
    assert address is not None
    if address.user and not _USER.match(address.user):
        raise UsageError(f"secondary {text!r}: {address.user!r} is not a user name")
    path = place_of(address.host, address.volume, os.fsencode(address.subdir))
    if not address.user and is_here(address.host):
        return Target(path, volume=address)
    return Target(path, address.host.strip("[]"), address.user or None, address)


def _parse_remote(text: str) -> Target:
    match = _REMOTE.match(text)
    if match is None:
        raise UsageError(
            f"secondary {text!r} is neither a path nor [user@]host:/path; write ./{text} for a local name with a "
            "colon, and an IPv6 address in brackets"
        )
    user, host, path = match["user"], match["v6"] if match["v6"] is not None else match["host"], match["path"]
    if text.startswith(("rsync://", "ssh://")) or path.startswith(":"):
        raise UsageError(
            f"secondary {text!r}: only [user@]host:/path over ssh is possible, no URL and no rsync daemon"
        )
    if not (_V6.match(host) if match["v6"] is not None else _HOST.match(host)):
        raise UsageError(f"secondary {text!r}: {host!r} is not a host name; write [user@]host:/path")
    if user is not None and not _USER.match(user):
        raise UsageError(f"secondary {text!r}: {user!r} is not a user name")
    if not path.startswith("/"):
        raise UsageError(
            f"secondary {text!r}: the path on {host} must be absolute, such as {text[: len(text) - len(path)]}/srv/{path or 'copy'}"
        )
    return Target(_normal(os.fsencode(path)), host, user)


def _normal(path: bytes) -> bytes:
    """Without doubled and trailing slashes and single dots; '..' stays, since a symlink may precede it."""
    return b"/" + b"/".join(part for part in path.split(b"/") if part not in {b"", b"."})
