"""The forced command of a session's key: serves one root, by the few forms that the primary's side sends.

sshd starts it whatever the client asked for, and hands that over in SSH_ORIGINAL_COMMAND (sshd(8),
AUTHORIZED_KEYS FILE FORMAT). No shell reads it: it is compared with patterns, word by word, and what is
then started is put together here. Paths are given as if the root were ``/``.

    seamark-agent PROTOCOL ROOT-IN-HEX              the agent of this very file
    rsync --server OPTIONS . /.seamark/staging/UNIT/new/
    seamark-untar none|gzip|zstd /.seamark/staging/UNIT/new
    seamark-has gzip|zstd                           exit status 0: it is installed here
    seamark-revoke                                  this key is let in no more
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import List, NoReturn, Optional

from replication.secondary import authorized, layout, mounting, untar
from replication.secondary.protocol import VERSION

REFUSED_STATUS = 94
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STAGING = "/{}/{}/".format(layout.HIDDEN.decode(), layout.STAGING.decode())
_UNIT = re.compile(re.escape(_STAGING) + r"(unit\.[0-9a-f]{1,64})/new/?")
# Receiving only; no links, devices, owners or recursion; and never --relative, which lets a sender name
# absolute paths. The letters after e. are what the client understands.
_LETTERS = re.compile(r"-[ISpz]+e\.[A-Za-z]*")
_OPTIONS = re.compile(
    r"--log-format=%i|--stats|--inplace|--no-W|--timeout=[0-9]+|--bwlimit=[0-9]+"
    r"|--(?:new|old)-compress|--compress-(?:choice=[a-z0-9]+|level=[0-9]+)"
)


class Refused(Exception):
    """Why this is not served. Shown to whoever holds the key."""


def gate(session: str, root: bytes) -> int:
    """Serve what was asked for, or say why not. Returns an exit status."""
    asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    try:
        return _serve(session, root, asked.split(" "))
    except Refused as reason:
        print("seamark: refused: {}".format(reason), file=sys.stderr)
        return REFUSED_STATUS


def _serve(session: str, root: bytes, words: List[str]) -> int:
    program, arguments = words[0], words[1:]
    if program == "seamark-agent" and len(arguments) == 2:
        return _agent(root, *arguments)
    if program == "rsync" and arguments[:1] == ["--server"]:
        _rsync(root, arguments[1:])
    if program == "seamark-untar" and len(arguments) == 2 and arguments[0] in ("none", *untar.COMPRESSORS):
        return untar.main(_new_directory(root, arguments[1]), arguments[0])
    if program == "seamark-has" and len(arguments) == 1 and arguments[0] in untar.COMPRESSORS:
        return 0 if shutil.which(arguments[0]) else 1
    if words == ["seamark-revoke"]:
        authorized.revoke(session)
        return 0
    raise Refused("this key serves one session of Seamark, and nothing else")


def _agent(root: bytes, protocol: str, asked_root: str) -> int:
    if asked_root != root.hex():
        raise Refused("this key serves {}, and no other directory".format(os.fsdecode(root)))
    if protocol != str(VERSION):
        raise Refused(
            "the secondary agent that lies here speaks protocol {}, the primary {}: run 'seamark push-pem NAME' "
            "there".format(VERSION, protocol)
        )
    from replication.secondary.__main__ import serve

    os.write(1, b"seamark-agent ready\n")
    return serve(root, limited=True)


def _rsync(root: bytes, words: List[str]) -> NoReturn:
    """Become the rsync that receives into a unit's directory. Raises Refused, OSError."""
    if len(words) < 3 or words[-2] != "." or not _LETTERS.fullmatch(words[0]):
        raise Refused("not what a session sends: rsync {}".format(" ".join(words)))
    unit = _unit(words[-1])
    new_fd = _new_directory(root, words[-1])
    real = os.path.realpath(root)
    paths = {
        "--copy-dest": "{}{}/basis".format(_STAGING, unit),
        "--partial-dir": _STAGING + "partial",
    }
    command = [b"rsync", b"--server", words[0].encode()]
    rest = iter(words[1:-2])
    for word in rest:
        if word in paths:
            if next(rest, None) != paths[word]:
                raise Refused("not a place for {}".format(word))
            command += [word.encode(), real + paths[word].encode()]
        elif _OPTIONS.fullmatch(word):
            command.append(word.encode())
        else:
            raise Refused("rsync is not started with {}".format(word))
    os.fchdir(new_fd)
    try:
        os.execvp("rsync", [*command, b".", b"./"])
    except FileNotFoundError:
        print("rsync: command not found", file=sys.stderr)
        sys.exit(127)


def _unit(path: str) -> str:
    match = _UNIT.fullmatch(path)
    if match is None:
        raise Refused("not a directory of a unit: {}".format(path))
    return match[1]


def _new_directory(root: bytes, path: str) -> int:
    """A descriptor of the directory that a unit's files go to, reached without following links. Raises Refused."""
    fd: Optional[int] = None
    try:
        fd = mounting.open_root(root, _DIR)
        for name in (layout.HIDDEN, layout.STAGING, _unit(path).encode(), b"new"):
            inner = os.open(name, _DIR, dir_fd=fd)
            os.close(fd)
            fd = inner
        return fd
    except OSError as error:
        if fd is not None:
            os.close(fd)
        raise Refused("{}: {}".format(path, error.strerror)) from None
