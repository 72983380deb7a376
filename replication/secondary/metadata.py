"""Owner, mode, times and extended attributes of objects on the secondary.

An object is met by name in a directory descriptor (symlinks are not followed) after its inode number was
checked, or by its own descriptor. Order matters: chown clears setuid and capabilities, an ACL goes with
the mode, and everything but utime moves times.
"""

from __future__ import annotations

import errno
import os
import stat
from base64 import b64decode
from typing import Any, Dict, List, Optional, Tuple

from replication.secondary.index import Row, is_object_of
from replication.secondary.protocol import AgentError

# Ours, and Gluster's: a mount of a volume shows some of them, on hard links that are to be moved, and nobody may change them.
_NEVER = ("user.seamark.", "trusted.seamark.", "trusted.glusterfs.")
_ACCESS_ACL = "system.posix_acl_access"
_EXACT = ("security.capability", _ACCESS_ACL, "system.posix_acl_default")
_NONE = (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP)
_XFS_ACLS = {"trusted.SGI_ACL_FILE": _EXACT[1], "trusted.SGI_ACL_DEFAULT": _EXACT[2]}
PLAIN_ACLS = frozenset(_XFS_ACLS)  # as XFS shows them a second time

Xattrs = Optional[Dict[str, str]]


class Powers:
    """What this process may do here, found out by trying (owner.py); what it may not is left undone silently."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.chown = self.uid == 0
        self.trusted = self.uid == 0
        self.mknod = self.uid == 0
        self.xattr = True


class Item:
    """State of an object on the primary, as `metadata` and `data` bring it. Times in ns."""

    __slots__ = (
        "atime", "ctime", "extents", "gfid", "gid", "ino", "mode", "mtime", "size", "ticket", "uid", "xattrs",
    )  # fmt: skip

    def __init__(
        self, gfid: str, size: int, mode: int, uid: int, gid: int, mtime: int, atime: int, ctime: int, ino: int,
        xattrs: Xattrs = None, extents: Optional[List[List[int]]] = None,
        ticket: int = 0,
    ) -> None:  # fmt: skip
        self.gfid = bytes.fromhex(gfid)
        self.size = size
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.atime = atime
        self.ctime = ctime
        self.ino = ino
        self.xattrs = xattrs
        self.extents = extents
        self.ticket = ticket  # of the look that this was read for; 0: whatever is wanted


def replicated(name: str, powers: Powers) -> bool:
    """Whether an attribute is the primary's to decide."""
    return is_replicated(name, powers.trusted)


def is_replicated(name: str, trusted: bool) -> bool:
    """The same: user.*, trusted.*, capabilities and ACLs, never our own, or Gluster's. ``trusted``: whether attributes of that
    namespace can be set on the secondary.
    """
    if name.startswith(_NEVER):
        return False
    return name.startswith("user.") or name in _EXACT or (trusted and name.startswith("trusted."))


def set_owner_fd(fd: int, uid: int, gid: int, powers: Powers, found: Optional[os.stat_result] = None) -> bool:
    """chown where needed and allowed; True when it was done (setuid bits are gone then)."""
    have = (found.st_uid, found.st_gid) if found is not None else (powers.uid, powers.gid)
    if have == (uid, gid):
        return False
    try:
        os.fchown(fd, uid, gid)
        return True
    except PermissionError:
        if powers.chown:
            raise
        return _own_group(fd, gid, have[1])


def _own_group(fd: int, gid: int, have: int) -> bool:
    """Without privileges: the group alone, if it is one of ours."""
    if gid == have:
        return False
    try:
        os.fchown(fd, -1, gid)
        return True
    except OSError:
        return False


def dress_new(fd: int, item: Item, powers: Powers, mode_is: int) -> None:
    """Owner, mode, attributes and times of a file just written by us. Raises OSError."""
    chowned = set_owner_fd(fd, item.uid, item.gid, powers)
    mode = item.mode & 0o7777
    if mode != mode_is or (chowned and mode & 0o6000):
        os.fchmod(fd, mode)
    if item.xattrs:
        set_xattrs(fd, item.xattrs, powers, ())
    os.utime(fd, ns=(item.atime, item.mtime))


def set_xattrs(target: Any, wanted: Dict[str, str], powers: Powers, present: Tuple[str, ...] = ()) -> None:
    """Make the replicated attributes of a descriptor or path what is wanted. Raises OSError.

    ``present``: names there are now; those of them that are not wanted are removed.
    """
    # A path is the magic link of an O_PATH descriptor: following it leads to the object, no further.
    follow = True
    for name in present:
        if name not in wanted and replicated(name, powers):
            try:
                os.removexattr(target, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _NONE and not _pardoned(error, name, powers):
                    raise
    # The access ACL last: it decides the final group bits of the mode.
    for name in sorted(wanted, key=lambda n: n == _ACCESS_ACL):
        if not replicated(name, powers):
            continue
        value = b64decode(wanted[name])
        try:
            if present and name in present and os.getxattr(target, name, follow_symlinks=follow) == value:
                continue
            os.setxattr(target, name, value, follow_symlinks=follow)
        except OSError as error:
            if not _pardoned(error, name, powers):
                raise


def _pardoned(error: OSError, name: str, powers: Powers) -> bool:
    """What cannot be had here as a whole is said once, in hello, not for each file."""
    if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
        return not powers.xattr
    return error.errno == errno.EPERM and not powers.chown and not name.startswith("user.")


def apply_at(
    dir_fd: int, name: bytes, row: Row, item: Any, powers: Powers, xattrs: Xattrs, times: bool
) -> None:
    """Make an existing object of ours look like ``item``; ``times`` says whether its times too.

    Raises AgentError("io") when another object stands at the name, OSError when the system refuses.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        found = os.fstat(fd)
        if not is_object_of(row, found):
            raise AgentError("io", "another object stands there", os.fsdecode(name))
        dress_existing(b"/proc/self/fd/%d" % fd, found, item, powers, xattrs, times)
    finally:
        os.close(fd)


def dress_existing(
    path: bytes, found: os.stat_result, item: Any, powers: Powers, xattrs: Xattrs, times: bool
) -> None:  # fmt: skip
    """Through the magic link of an O_PATH descriptor, which leads to the object itself, symlinks too."""
    chowned = False
    if (found.st_uid, found.st_gid) != (item.uid, item.gid):
        try:
            os.chown(path, item.uid, item.gid)
            chowned = True
        except PermissionError:
            if powers.chown:
                raise
            if found.st_gid != item.gid:
                try:
                    os.chown(path, -1, item.gid)
                    chowned = True
                except OSError:
                    pass
    link = stat.S_ISLNK(found.st_mode)
    mode = item.mode & 0o7777
    if not link and (found.st_mode & 0o7777 != mode or (chowned and mode & 0o6000)):
        os.chmod(path, mode)
    if xattrs is not None:
        _set_existing_xattrs(path, xattrs, powers, mode, link)
    if times:
        os.utime(path, ns=(item.atime, item.mtime))


def _set_existing_xattrs(path: bytes, xattrs: Dict[str, str], powers: Powers, mode: int, link: bool) -> None:
    try:
        present = tuple(os.listxattr(path))
    except OSError as error:
        if error.errno not in _NONE:
            raise
        present = ()
    # XFS shows its ACLs a second time under these names; removing one that is wanted would remove the ACL.
    present = tuple(name for name in present if _XFS_ACLS.get(name) not in xattrs)
    if not present and not xattrs:
        return
    had_acl = _ACCESS_ACL in present
    if had_acl and _ACCESS_ACL not in xattrs:
        # Removing an ACL leaves the mask as the group's bits, and chmod changed only the mask.
        os.removexattr(path, _ACCESS_ACL)
        os.chmod(path, mode)
        present = tuple(n for n in present if n != _ACCESS_ACL)
    set_xattrs(path, xattrs, powers, present)
    if not link and (had_acl or _ACCESS_ACL in xattrs):
        os.chmod(path, mode)


def dress_directory(fd: int, row: Row, powers: Powers) -> None:
    """Owner and mode of one of our directories, by its descriptor. Raises OSError."""
    found = os.fstat(fd)
    set_owner_fd(fd, row.uid, row.gid, powers, found)
    os.fchmod(fd, row.mode & 0o7777)
