"""Which extended attributes are replicated, and reading them. Source: xattr(7), acl(5), capabilities(7)."""

from __future__ import annotations

import errno
import os
from base64 import b64encode

_NEVER = ("user.seamark.", "trusted.seamark.", "trusted.glusterfs.")  # see secondary/metadata.py
_KEPT = ("user.", "trusted.")
_KEPT_EXACTLY = {"security.capability", "system.posix_acl_access", "system.posix_acl_default"}
_NONE = {errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP}


def replicated(name: str) -> bool:
    """Whether an attribute of this name is replicated: user.*, trusted.*, capabilities and ACLs, never our own, or Gluster's."""
    return (name.startswith(_KEPT) and not name.startswith(_NEVER)) or name in _KEPT_EXACTLY


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
        if not replicated(name):
            continue
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno in _NONE:
                continue
            raise
        found[name] = b64encode(value).decode()
    return found
