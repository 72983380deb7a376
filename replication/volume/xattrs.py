"""Reading the extended attributes that are replicated. Source: xattr(7), acl(5), capabilities(7)."""

from __future__ import annotations

import errno
import os
from base64 import b64encode

from replication.secondary.metadata import is_replicated

_NONE = {errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP}


def read_xattrs(target: int | bytes) -> dict[str, str]:
    """Replicated attributes of a descriptor or path (symlinks are not followed), values as base64.

    trusted.* are visible to privileged processes only. Raises OSError on what cannot be read.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NONE:
            return {}
        raise
    found = {}
    for name in names:
        if not is_replicated(name, trusted=True):  # who receives them knows what it can set
            continue
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno in _NONE:
                continue
            raise
        found[name] = b64encode(value).decode()
    return found
