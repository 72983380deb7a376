"""Directories for this user alone."""

from __future__ import annotations

import contextlib
import errno
import os


def private_dir(path: str | os.PathLike[str]) -> None:
    """Make a directory, and those above it that are missing: none of them is open to others. Raises OSError.

    What is there already stays as it is.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return
    above = os.path.dirname(path.rstrip("/"))
    if above and above != path:
        private_dir(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    if not os.path.isdir(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
