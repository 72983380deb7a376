"""Whether what was sent is still what it was."""

from __future__ import annotations

import os
from itertools import groupby
from typing import TYPE_CHECKING

from replication.volume.directory import GONE
from replication.volume.handle import open_beneath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replication.volume.directory import DirectoryVolume

    Sent = tuple[bytes, int, int, dict[str, str] | None]


def changed_since(volume: DirectoryVolume, files: Iterable[Sent]) -> set[bytes]:
    """Which of these files, (path, inode number, ctime_ns, attributes if known), may have changed since they had that ctime, and those.

    Those that moved or vanished are left out: that is recorded, and theirs is another story. Raises VolumeAway where the whole
    volume is.
    """
    changed: set[bytes] = set()
    for directory, group in groupby(files, key=lambda file: os.path.dirname(file[0])):
        members = list(group)
        try:
            dir_fd = open_beneath(volume.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if _says_nothing(volume, error):
                changed.update(path for path, *_ in members)
            continue
        try:
            changed.update(each[0] for each in members if _may_differ(volume, dir_fd, *each))
        finally:
            os.close(dir_fd)
    return changed


def _may_differ(
    volume: DirectoryVolume, dir_fd: int, path: bytes, ino: int, ctime_ns: int, xattrs: dict[str, str] | None
) -> bool:
    name = os.path.basename(path)
    try:
        now = volume.stat(dir_fd, name)
        differs = now.ctime_ns != ctime_ns or (
            volume.hides_xattrs
            and xattrs is not None
            and volume.xattrs(b"/proc/self/fd/%d/%s" % (dir_fd, name)) != xattrs
        )
    except OSError as error:
        return _says_nothing(volume, error)
    return differs and ino in (0, now.ino)


def _says_nothing(volume: DirectoryVolume, error: OSError) -> bool:
    """Whether an error does not mean that a file is not there (any more)."""
    try:
        if error.errno in GONE:
            volume.confirm_absence()
            return False
    except OSError as doubt:
        error = doubt
    volume.check_answers(error)
    return True
