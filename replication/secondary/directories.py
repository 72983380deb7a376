"""Directories below ``.seamark``: for us alone."""

from __future__ import annotations

import os

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def our_directory(parent_fd: int, name: bytes) -> int:
    """Make or open one of our own directories: for us alone, whatever the root passes on to new ones."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:
        return os.open(name, _DIR, dir_fd=parent_fd)
    fd = os.open(name, _DIR, dir_fd=parent_fd)
    for attribute in ("system.posix_acl_default", "system.posix_acl_access"):
        try:
            os.removexattr(fd, attribute)
        except OSError:
            pass
    os.fchmod(fd, 0o700)
    return fd
