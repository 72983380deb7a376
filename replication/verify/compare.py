"""What two rows say of one name: equal, or in which way different, in words."""

from __future__ import annotations

import os
import stat
import time
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replication.secondary.inspection import Row

_ACLS = {"system.posix_acl_access": "acl", "system.posix_acl_default": "default acl"}
_TYPES = {"f": "file", "d": "directory", "l": "symlink", "p": "fifo", "s": "socket", "c": "character device",
          "b": "block device", "?": "object of an unknown type"}  # fmt: skip


class Difference(StrEnum):
    """The kinds of rows of a comparison. UNREADABLE is no difference: one of the ends could not be read."""

    MISSING = "MISSING"
    EXTRA = "EXTRA"
    TYPE = "TYPE"
    SIZE = "SIZE"
    CONTENT = "CONTENT"
    META = "META"
    LINKS = "LINKS"
    UNREADABLE = "UNREADABLE"


# As `rclone check --combined` has them: - only on the secondary, + only on the primary.
SYMBOLS = {Difference.MISSING: "+", Difference.EXTRA: "-", Difference.UNREADABLE: "!"}
EQUAL, DIFFERENT = "=", "*"


def symbol(kind: Difference) -> str:
    return SYMBOLS.get(kind, DIFFERENT)


def difference(here: Row | None, there: Row | None) -> tuple[Difference | None, str]:
    """What differs between the primary and the secondary at one name, the gravest first, in words; None: nothing.

    Contents in pieces are not compared here.
    """
    if here is None or there is None:
        only = here or there
        if only is None:
            return None, ""
        return Difference.EXTRA if here is None else Difference.MISSING, _TYPES[only.kind]
    if here.error or there.error:
        where, code = ("primary", here.error) if here.error else ("secondary", there.error)
        return Difference.UNREADABLE, f"on the {where}: {os.strerror(code)}"
    if here.kind != there.kind:
        return Difference.TYPE, f"{_TYPES[here.kind]} here, {_TYPES[there.kind]} there"
    attributes = list(_attributes(here, there))
    if here.size != there.size:
        return Difference.SIZE, _also(f"{here.size} bytes here, {there.size} there", attributes)
    if (here.content, here.target, here.rdev) != (there.content, there.target, there.rdev):
        return Difference.CONTENT, _also(_content(here, there), attributes)
    if attributes:
        return Difference.META, "; ".join(attributes)
    return None, ""


def _also(first: str, attributes: list[str]) -> str:
    return "; ".join([first, *attributes])


def _content(here: Row, there: Row) -> str:
    if here.kind == "l":
        return f"leads to {os.fsdecode(here.target)} here, to {os.fsdecode(there.target)} there"
    if here.kind in "cb":
        return f"device {_device(here.rdev)} here, {_device(there.rdev)} there"
    return "the content differs"


def _device(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _attributes(here: Row, there: Row) -> list[str]:
    found = []
    if here.mode != there.mode:
        found.append(f"mode {_mode(here)} here, {_mode(there)} there")
    if (here.uid, here.gid) != (there.uid, there.gid):
        found.append(f"owner {here.uid}:{here.gid} here, {there.uid}:{there.gid} there")
    if here.mtime != there.mtime:
        found.append(f"mtime {_moment(here.mtime)} here, {_moment(there.mtime)} there")
    for name in sorted(here.xattrs.keys() | there.xattrs.keys()):
        mine, theirs = here.xattrs.get(name), there.xattrs.get(name)
        if mine != theirs:
            how = (
                "not there" if theirs is None else "only there" if mine is None else "has another value there"
            )
            found.append(f"{_ACLS.get(name, name)} {how}")
    # The other way round is what a transfer makes of zeros, and costs nobody anything.
    if here.sparse and not there.sparse:
        found.append("holes here, none there")
    return found


def _mode(row: Row) -> str:
    return format(stat.S_IMODE(row.mode), "04o")


def _moment(ns: int) -> str:
    seconds, rest = divmod(ns, 10**9)
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"
    except (OverflowError, ValueError, OSError):
        return f"{seconds}.{rest:09d}"
