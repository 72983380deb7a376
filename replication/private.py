"""Directories for this user alone: made, and removed without what others have mounted in them."""

from __future__ import annotations

import contextlib
import errno
import os
import re

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OCTAL = re.compile(rb"\\([0-7]{3})")


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


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a directory with all that is in it, but for what is mounted there.

    Raises OSError; with EBUSY, and before anything is removed, where something is mounted at or below it. shutil.rmtree
    would remove what is in that, which may be a volume with all of its data.
    """
    path = os.path.realpath(path)
    for where in _mounted():
        if where == os.fsencode(path) or where.startswith(os.fsencode(path) + b"/"):
            raise OSError(errno.EBUSY, "something is mounted there", os.fsdecode(where))
    fd = os.open(path, _DIRECTORY)
    try:
        _empty(fd, os.fstat(fd).st_dev, path)
    finally:
        os.close(fd)
    os.rmdir(path)


def _empty(fd: int, device: int, path: str) -> None:
    with os.scandir(fd) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_dir in entries:
        if not is_dir:
            os.unlink(name, dir_fd=fd)
            continue
        below = os.open(name, _DIRECTORY, dir_fd=fd)
        try:
            if os.fstat(below).st_dev != device:  # it was mounted a moment ago
                raise OSError(errno.EBUSY, "something is mounted there", os.path.join(path, name))
            _empty(below, device, os.path.join(path, name))
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=fd)


def _mounted() -> list[bytes]:
    """Where something is mounted. Source: proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", "rb") as mounts:
        return [unescaped(line.split(b" ")[4]) for line in mounts]


def unescaped(field: bytes) -> bytes:
    """A path as it is, of one that the kernel has written into such a file."""
    return _OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), field)


def is_mount(path: str | os.PathLike[str]) -> bool:
    """Whether anything is mounted there, without asking whoever serves it, which may hang."""
    above, name = os.path.split(os.fspath(path))
    return os.fsencode(os.path.join(os.path.realpath(above), name)) in _mounted()
