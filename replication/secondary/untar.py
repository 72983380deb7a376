"""Unpack a unit's tar stream: regular files named by gfid, into one directory, and nothing else.

tar itself would follow a link that an earlier stream has left, and make devices; a key that is limited to
one root must not be able to do either. What it says, and how it ends, is as GNU tar has it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from typing import IO, Any

COMPRESSORS = ("gzip", "zstd")
_NAME = re.compile(r"(?:\./)?([0-9a-f]{32})")
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 20


def main(new_fd: int, compressor: str) -> int:
    """Standard input into the directory. Returns 0, or 2 when something was left out."""
    if compressor == "none":
        return unpack(sys.stdin.buffer, new_fd)
    process = subprocess.Popen([compressor, "-dc"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        status = unpack(process.stdout, new_fd)
    return 2 if process.wait() else status


def unpack(stream: IO[bytes], new_fd: int) -> int:
    """See main. Names of what was unpacked go to standard output, errors to standard error."""
    status = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                match = _NAME.fullmatch(member.name)
                if match is None or not member.isreg():
                    _say(member.name, "not a file of a unit: left out")
                    status = 2
                    continue
                try:
                    _write(archive, member, match[1], new_fd)
                    print(match[1], flush=True)
                except OSError as error:
                    _say(match[1], "Cannot write: {}".format(error.strerror))
                    status = 2
    except (tarfile.TarError, EOFError) as error:
        print("tar: {}; Error is not recoverable: exiting now".format(error), file=sys.stderr)
        return 2
    return status


def _say(name: str, what: str) -> None:
    print("tar: {}: {}".format(name.encode("ascii", "backslashreplace").decode(), what), file=sys.stderr)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, new_fd: int) -> None:
    """One file: written through where there is one, as a unit in place wants it. Raises OSError.

    The stream stands at its data, of which that of a sparse file follows without its holes.
    """
    content: Any = archive.fileobj
    sparse: Any = member.sparse
    fd = os.open(name, _FLAGS, 0o600, dir_fd=new_fd)
    with open(fd, "wb") as file:
        file.truncate(0)
        for offset, size in ((0, member.size),) if sparse is None else sparse:
            file.seek(offset)
            left = size
            while left:
                piece = content.read(min(left, _PIECE))
                if not piece:
                    raise OSError(5, "the stream ended in the middle of it")
                file.write(piece)
                left -= len(piece)
        file.truncate(member.size)
