"""The mark on the volume itself, so that it travels with the data."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replication.progress import Brick


def store_mark(root_fd: int, session_id: str, brick: Brick) -> None:
    """Write the mark as an xattr of the root: trusted.* where allowed, else user.*.

    A file system that has neither, or a read-only one, carries none: the durable truth is the progress database.
    """
    mark = {
        "stime_ns": brick.stime_ns,
        "front": brick.front,
        "epoch": brick.epoch,
        "written": int(time.time()),
    }
    text = json.dumps(mark).encode()
    for space in ("trusted", "user"):
        with contextlib.suppress(OSError):
            os.setxattr(root_fd, f"{space}.seamark.{session_id}.stime", text)
            return
