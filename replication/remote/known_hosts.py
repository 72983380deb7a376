"""Host keys: is the key that a host shows the one we know?

Reads known_hosts files as sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT", describes them: plain names,
patterns with * ? and !, hashed names, [host]:port, and @revoked. Lines of @cert-authority are left
out: the control connection does not speak host certificates.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from dataclasses import dataclass
from enum import Enum
from fnmatch import translate
from hashlib import sha256
from re import IGNORECASE
from re import compile as compile_pattern
from typing import TYPE_CHECKING

from replication.private import private_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Verdict(Enum):
    """What the files say of a key."""

    KNOWN = "known"
    UNKNOWN = "unknown"  # nothing about this host
    CHANGED = "changed"  # another key is known for this host
    REVOKED = "revoked"  # this very key is marked @revoked


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line that speaks of the host: where it stands, and the key."""

    file: Path
    line: int
    revoked: bool
    type: str
    blob: bytes


def fingerprint(blob: bytes) -> str:
    """As ssh-keygen -l prints it."""
    return "SHA256:" + base64.b64encode(sha256(blob).digest()).decode().rstrip("=")


def lookup_name(host: str, port: int) -> str:
    """The name under which known_hosts keeps a host."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def known_keys(files: Iterable[Path], name: str) -> list[KnownKey]:
    """Every key that the files have for ``name``. A file that is missing or unreadable has none."""
    return [key for file in files for key in _read(file, name)]


def judge(files: Iterable[Path], host: str, port: int, blob: bytes) -> tuple[Verdict, list[KnownKey]]:
    """The verdict on a key, and the lines that led to it.

    As OpenSSH does, a line for the bare host vouches for its other ports, but never contradicts them.
    """
    files = list(files)
    keys = known_keys(files, lookup_name(host, port))
    revoked = [key for key in keys if key.revoked and key.blob == blob]
    if revoked:
        return Verdict.REVOKED, revoked
    valid = [key for key in keys if not key.revoked]
    if any(key.blob == blob for key in valid):
        return Verdict.KNOWN, valid
    if valid:
        return Verdict.CHANGED, valid
    bare = known_keys(files, lookup_name(host, 22)) if port != 22 else []
    if any(key.revoked and key.blob == blob for key in bare):
        return Verdict.REVOKED, bare
    if any(key.blob == blob for key in bare):
        return Verdict.KNOWN, bare
    return Verdict.UNKNOWN, []


def pin(file: Path, host: str, port: int, key_type: str, blob: bytes) -> None:
    """Add a key. One short append: several workers may do it at once. Raises OSError."""
    private_dir(file.parent)
    line = f"{lookup_name(host, port)} {key_type} {base64.b64encode(blob).decode()}\n"
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(file: Path, name: str) -> Iterator[KnownKey]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return
    for number, raw in enumerate(lines, 1):
        fields = raw.decode("utf-8", "replace").split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#") or marker not in {"", "@revoked"}:
            continue
        if not _matches(fields[0], name):
            continue
        try:
            blob = base64.b64decode(fields[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        yield KnownKey(file, number, marker == "@revoked", fields[1], blob)


def _matches(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        return _matches_hash(patterns, name)
    found = False
    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        if _glob(pattern.removeprefix("!"), name):
            if negated:
                return False
            found = True
    return found


def _matches_hash(field: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in field.split("|")[2:4])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)


def _glob(pattern: str, name: str) -> bool:
    """ssh's patterns know * and ?; brackets stand for themselves, as in [host]:port."""
    plain = translate(pattern.replace("[", "[[]"))
    return compile_pattern(plain, IGNORECASE).match(name) is not None
