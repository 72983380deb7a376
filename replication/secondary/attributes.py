"""Extended attributes of what stands below a root, ACLs among them: to compare two sides, and to keep what one of them loses."""

from __future__ import annotations

import errno
import os
from base64 import b64encode
from typing import Dict, Optional

from replication.secondary.metadata import PLAIN_ACLS, is_replicated

_NONE = (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP)


def attributes_at(dir_fd: int, name: bytes, ino: int, *, trusted: bool) -> Optional[Dict[str, str]]:
    """The replicated attributes of the inode that stands there, in base64; None: it is not there, or cannot be asked.

    ``trusted``: those of that namespace too, which only root sees.
    """
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        return _read(b"/proc/self/fd/%d" % fd, trusted) if os.fstat(fd).st_ino == ino else None
    except OSError as error:
        return {} if error.errno in _NONE else None
    finally:
        os.close(fd)


def _read(path: bytes, trusted: bool) -> Dict[str, str]:
    found = {}
    for name in os.listxattr(path):
        if is_replicated(name, trusted) and name not in PLAIN_ACLS:
            try:
                found[name] = b64encode(os.getxattr(path, name)).decode()
            except OSError as error:
                if error.errno != errno.ENODATA:  # it went meanwhile
                    raise
    return found
