"""Child processes of the movers: their surroundings, and their end whatever happens to us."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

_PATIENCE_S = 10
# prctl(2), PR_SET_PDEATHSIG = 1. Not in a preexec_fn: that is no place for Python in a process with threads.
_LAUNCHER = (
    "import ctypes,os,sys\n"
    "parent = int(sys.argv[1])\n"
    "ctypes.CDLL(None).prctl(1, 15)\n"
    "if os.getppid() == parent: os.execvp(sys.argv[2], sys.argv[2:])\n"
)


def english() -> dict[str, str]:
    """The environment with messages in English, since they are read by us; the rest as it is."""
    return {**os.environ, "LC_ALL": "C"}


def mortal(command: list[str | bytes]) -> list[str | bytes]:
    """The command, ended by SIGTERM when this process dies, however it dies.

    An rsync that outlives a killed worker would go on writing in place while its successor does. Raises
    FileNotFoundError when there is no such program.
    """
    if shutil.which(os.fsdecode(command[0])) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


@contextmanager
def ended(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within, the processes run; after it, they are gone: asked by SIGTERM first, so that rsync keeps
    what it has, and by SIGKILL after ten seconds. Their pipes are closed.
    """
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def lines_of(stream: IO[bytes], alive: Callable[[], object]) -> Iterator[str]:
    """Lines ended by a newline or, as progress is, by a carriage return. Calls ``alive`` every second."""
    rest = b""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    while True:
        if not poll.poll(1000):
            alive()
            continue
        part = os.read(stream.fileno(), 1 << 16)
        *whole, rest = re.split(rb"[\r\n]", rest + part)
        yield from (line.decode("utf-8", "replace") for line in whole)
        alive()
        if not part:
            yield rest.decode("utf-8", "replace")
            return
