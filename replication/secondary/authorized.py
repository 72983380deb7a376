"""Lines of ours in the far user's authorized_keys, and the gate that they start. See sshd(8).

One line for a session, told by its comment; all other lines stay byte for byte. The file is written aside
and renamed. The gate is this very program, kept beside other data of the user, where no replicated tree
reaches it.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import Any, Dict, List

import replication.secondary
from replication.secondary.protocol import VERSION

_SESSION = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]+")
_FLAGS = "-I -S -X utf8"


class Refused(Exception):
    """Why no key is put here."""


def _home() -> str:
    return os.path.realpath(os.environ.get("HOME") or os.path.expanduser("~"))


def _gate_path(session: str) -> str:
    return os.path.join(_home(), ".local", "share", "seamark", "gate-{}.pyz".format(session))


def install(session: str, root: bytes, key: str) -> Dict[str, Any]:
    """Have ``key`` serve ``root`` and nothing else, in place of the session's key before it.

    ``key``: type and base64, without a comment. Gives the file and the line. Raises Refused, OSError.
    """
    path = _gate_path(session)
    _refuse_overlap(root, (os.path.dirname(path), os.path.join(_home(), ".ssh")))
    return let_in(session, key, ["gate", session, root.hex()])


def let_in(session: str, key: str, words: List[str]) -> Dict[str, Any]:
    """Have ``key`` start this very program with these words, and nothing else. As ``install``."""
    if not _SESSION.fullmatch(session) or not _KEY.fullmatch(key):
        raise Refused("not a session, or not an ed25519 key")
    path = _gate_path(session)
    if re.search(r'[\x00-\x1f\x7f"\\]', path + sys.executable):
        raise Refused("the home directory has a name that authorized_keys cannot hold: {!r}".format(path))
    archive = getattr(replication.secondary.__loader__, "archive", "")
    with open(archive, "rb") as file:
        content = file.read()
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    _replace(path, content, 0o600)
    said = " ".join(map(shlex.quote, words))
    command = "{} {} {} {}".format(shlex.quote(sys.executable), _FLAGS, shlex.quote(path), said)
    line = 'restrict,command="{}" {} {}'.format(command, key, _comment(session))
    return {"file": _rewrite(session, [line.encode()]), "line": line, "protocol": VERSION}


def revoke(session: str) -> Dict[str, Any]:
    """Let the session's key in no more, and remove its gate. Nothing happens where there is none."""
    file = _rewrite(session, [])
    try:
        os.unlink(_gate_path(session))
    except FileNotFoundError:
        pass
    return {"file": file}


def _comment(session: str) -> str:
    return "seamark-session:{}".format(session)


def _refuse_overlap(root: bytes, places: Any) -> None:
    """What lets keys in, and what they start, must be out of the reach of what is replicated."""
    real = os.fsdecode(os.path.realpath(root))
    for place in map(os.path.realpath, places):
        for outer, inner in ((real, place), (place, real)):
            if (inner + "/").startswith(outer.rstrip("/") + "/"):
                raise Refused(
                    "{} and {} must not contain each other, or the key could change what limits it: choose another "
                    "directory for the secondary, or another user".format(real, place)
                )


def _rewrite(session: str, added: List[bytes]) -> str:
    """Replace the session's line, if there is one. Returns the file's name. Raises OSError."""
    directory = os.path.join(_home(), ".ssh")
    if added:
        os.makedirs(directory, 0o700, exist_ok=True)
    path = os.path.realpath(os.path.join(directory, "authorized_keys"))
    mode = 0o600
    try:
        with open(path, "rb") as file:
            before = file.read()
            mode = os.fstat(file.fileno()).st_mode & 0o7777
    except FileNotFoundError:
        before = b""
    mark = b" " + _comment(session).encode()
    lines = before.splitlines(keepends=True)
    kept = b"".join(line for line in lines if not line.rstrip(b"\r\n").endswith(mark))
    if added and kept and not kept.endswith(b"\n"):
        kept += b"\n"
    after = kept + b"".join(line + b"\n" for line in added)
    if after != before:
        _replace(path, after, mode)
    return path


def _replace(path: str, content: bytes, mode: int) -> None:
    """Write aside, sync, rename."""
    aside = "{}.{}.new".format(path, os.getpid())
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, mode)
            file.flush()
            os.fsync(fd)
        os.rename(aside, path)
    except OSError:
        os.unlink(aside)
        raise
