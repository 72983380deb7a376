"""The mark on the roots themselves, so that it travels with the data."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replication.progress import Brick

SPACES = ("trusted.", "user.")  # trusted.* where allowed


def mark_name(session_id: str) -> str:
    """The xattr's name, without its namespace."""
    return f"seamark.{session_id}.stime"


def mark_text(brick: Brick) -> str:
    """What the xattr says: JSON."""
    return json.dumps(
        {"stime_ns": brick.stime_ns, "front": brick.front, "epoch": brick.epoch, "written": int(time.time())}
    )


def store_mark(root_fd: int, session_id: str, text: str) -> bool:
    """Write the mark as an xattr of the primary's root; whether that could be done.

    A file system that takes neither namespace, or a read-only one, carries none: the durable truth is
    the progress database.
    """
    for space in SPACES:
        with contextlib.suppress(OSError):
            os.setxattr(root_fd, space + mark_name(session_id), text.encode())
            return True
    return False


def marked_ns(text: str | None) -> int:
    """The time that such a text gives; 0: none."""
    try:
        return int(json.loads(text or "")["stime_ns"])
    except (ValueError, KeyError, TypeError):
        return 0


def read_mark(root: str, session_id: str) -> str | None:
    """What the primary's root says; None: nothing."""
    for space in SPACES:
        with contextlib.suppress(OSError):
            return os.getxattr(root, space + mark_name(session_id)).decode(errors="replace")
    return None


def forget_mark(root: str, session_id: str) -> None:
    """Take the mark off a root. Raises OSError when it is there and cannot be."""
    for space in SPACES:
        try:
            os.removexattr(root, space + mark_name(session_id))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
                raise
