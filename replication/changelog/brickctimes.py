"""When the inodes of a brick changed: by their handles, `.glusterfs/aa/bb/<gfid>`, hard links or, to directories, symlinks.

Python 3.9: this goes to the nodes whose bricks are followed (replication/bricknode).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as st
import struct
from collections.abc import Iterator
from uuid import UUID

_ROOT = str(UUID(int=1))
_TIMES = "trusted.glusterfs.mdata"
_CTIME_AT = 9  # after a version and flags, big-endian: seconds, nanoseconds
# What clients see is the time at which they asked; a brick's is the one at which it was done, with what it notes of it.
_EXPLAINED_NS = 1_000_000_000


def handle_of(brick: str, gfid: bytes) -> str:
    name = str(UUID(bytes=gfid))
    return os.path.join(brick, ".glusterfs", name[:2], name[2:4], name)


def changed(brick: str, since_ns: int | None, unexplained_ns: int) -> Iterator[bytes]:
    """gfids of what changed since ``since_ns`` (None: not wanted), and of what changed since ``unexplained_ns`` otherwise than clients can
    see, by the brick's clock; empty ones between them, so that whoever waits can look at the time.

    Raises OSError where not all of it can be read, or it goes away.
    """
    handles = os.path.join(brick, ".glusterfs")
    began = os.stat(handles)
    for number in range(1 << 16):
        folder = os.path.join(handles, f"{number >> 8:02x}", f"{number & 255:02x}")
        yield b""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                handle = os.path.join(folder, name)
                ctime = ctime_of(handle) or 0
                is_wanted = since_ns is not None and ctime >= since_ns
                if ctime >= unexplained_ns and not is_wanted:
                    is_wanted = _is_unexplained(handle, ctime)
                with contextlib.suppress(ValueError):
                    yield UUID(name).bytes if is_wanted else b""
    if not os.path.samestat(began, os.stat(handles)):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), handles)


def _is_unexplained(handle: str, ctime_ns: int) -> bool:
    seen_ns = _seen_ctime_of(handle)
    return seen_ns is not None and abs(seen_ns - ctime_ns) > _EXPLAINED_NS


def _seen_ctime_of(handle: str) -> int | None:
    """The ctime that clients see of an object; None where the volume keeps none of its own for it: then they see the inode's."""
    # The handle of a directory is a symlink to it; that of a symlink is the symlink.
    for follow in (False, True):
        with contextlib.suppress(OSError, struct.error):
            kept = os.getxattr(handle, _TIMES, follow_symlinks=follow)
            seconds, nanoseconds = struct.unpack_from(">QQ", kept, _CTIME_AT)
            return int(seconds) * 10**9 + int(nanoseconds)
    return None


def ctime_of(handle: str) -> int | None:
    """When the brick's inode of an object changed; None: it is not there."""
    try:
        found = os.lstat(handle)
    except OSError:
        return None
    if st.S_ISLNK(found.st_mode):
        # A directory's; or a symlink of somebody's, that may lead anywhere, or nowhere.
        with contextlib.suppress(OSError):
            return max(found.st_ctime_ns, _followed(handle, found).st_ctime_ns)
    return found.st_ctime_ns


def _followed(handle: str, found: os.stat_result) -> os.stat_result:
    """What a symlink leads to. That of a directory leads through those of all above it, of which 40 are followed. Raises OSError."""
    try:
        return os.stat(handle)
    except OSError as error:
        if error.errno != errno.ELOOP or found.st_nlink != 1:  # somebody's symlink has a name, too
            raise
    names: list[str] = []
    while os.path.basename(handle) != _ROOT:
        above, name = os.path.split(os.readlink(handle))  # ../../aa/bb/<gfid of the parent>/<name>
        names.append(name)
        handle = os.path.normpath(os.path.join(os.path.dirname(handle), above))
    return os.stat(os.path.join(handle, *reversed(names)))
