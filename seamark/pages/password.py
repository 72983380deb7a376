"""The password of Flower: made once, kept in a file that only its owner can read, and never anywhere else.

It is in no argument, no environment and no log: processes are given the name of the file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from replication.errors import SeamarkError, UsageError
from replication.private import private_dir

USER = "seamark"
_BYTES = 18
_LONGEST = 1024


def flower_dir(state_dir: str) -> Path:
    """Where Flower keeps its own, made when it is missing. Raises SeamarkError.

    What it keeps of tasks is read back as a pickle, so nobody else may write there.
    """
    directory = Path(state_dir) / "flower"
    try:
        private_dir(directory)
        status = directory.stat()
    except OSError as error:
        raise SeamarkError(f"cannot write in {directory}: {error.strerror}") from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UsageError(f"{directory} is open to others: it must be yours, and of mode 0700")
    return directory


def own_password_file(state_dir: str) -> Path:
    """The file with the generated password, made when it is missing. Raises SeamarkError."""
    directory = flower_dir(state_dir)
    path = directory / "password"
    try:
        if not path.exists():
            fd, aside = tempfile.mkstemp(dir=directory)
            try:
                with os.fdopen(fd, "w", encoding="ascii") as file:
                    file.write(secrets.token_urlsafe(_BYTES) + "\n")
                with contextlib.suppress(FileExistsError):  # two made one at the same time: the first is kept
                    os.link(aside, path)
            finally:
                os.unlink(aside)
        mode = path.stat().st_mode
    except OSError as error:
        raise SeamarkError(f"cannot write {path}: {error.strerror}") from None
    if mode & 0o077:
        raise UsageError(f"others can read {path}: remove it, and a new password is made")
    return path


def read_password(path: Path) -> str:
    """The first line of a file. Raises UsageError."""
    try:
        with open(path, encoding="utf-8") as file:
            line = file.readline(_LONGEST + 2).rstrip("\r\n")
    except OSError as error:
        raise UsageError(f"the password cannot be read from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} holds no text: its first line is the password") from None
    if not line or len(line) > _LONGEST:
        raise UsageError(f"{path}: its first line must be the password, of 1 to {_LONGEST} characters")
    return line
