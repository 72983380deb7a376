"""What stands at a name, so that two ends can compare it: a row for each name, and digests of rows.

Both ends use this, each on its own tree: what travels is a digest of many rows, the rows where digests differ,
and of contents never more than digests. Nothing here believes an index.
"""

from __future__ import annotations

import os
import stat
from hashlib import blake2b, new
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from replication.secondary.metadata import PLAIN_ACLS, is_replicated
from replication.secondary.mounting import drop_pages

_INO = 0x7FFF_FFFF_FFFF_FFFF  # as many bits as SQLite has room for

PIECE = 32 << 20  # bytes; a larger file is digested in pieces of this size
_READ = 1 << 20
_KEEP_OUT = 1 << 20  # files from this size on do not push others out of the page cache
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFSOCK: "s",
    stat.S_IFCHR: "c", stat.S_IFBLK: "b",
}  # fmt: skip
_ALL = 1 << 64


class Manner(NamedTuple):
    """How to compare. ``owners``, ``xattrs``, ``trusted``: whether the secondary can keep them at all.

    ``salt``, ``low``, ``high``: only names whose 64-bit digest of salt and path is in [low, high).
    """

    content: bool = True
    hash: str = "sha256"
    owners: bool = True
    xattrs: bool = True
    trusted: bool = True
    salt: str = ""
    low: int = 0
    high: int = _ALL

    @property
    def partial(self) -> bool:
        return (self.low, self.high) != (0, _ALL)

    def takes(self, key: bytes) -> bool:
        """Whether a name (its path), or what else identifies it, is in the part that is compared."""
        if not self.partial:
            return True
        found = blake2b(key, digest_size=8, key=self.salt.encode()).digest()
        return self.low <= int.from_bytes(found, "big") < self.high


class Row(NamedTuple):
    """One name. ``kind``: a letter as find(1) -type; ``content``: digest in hex; ``error``: errno of what was refused."""

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    rdev: int
    target: bytes
    xattrs: Dict[str, str]
    content: str
    sparse: bool
    nlink: int
    ino: int
    ctime: int
    error: int

    @property
    def in_pieces(self) -> bool:
        return self.kind == "f" and self.size > PIECE


def row_of(dir_fd: int, name: bytes, manner: Manner) -> Optional[Row]:
    """What ``name`` is in a directory ("." itself); None: nothing. What cannot be read is said in ``error``."""
    try:
        s = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    kind = _KINDS.get(stat.S_IFMT(s.st_mode), "?")
    target, xattrs, content, sparse, error = b"", {}, "", False, 0
    try:
        if kind == "f" and _to_open(s, manner):
            fd = open_to_read(dir_fd, name)
            try:
                xattrs = _xattrs(fd, manner)
                sparse = s.st_blocks * 512 < s.st_size and _has_hole(fd, s.st_size)
                if manner.content and 0 < s.st_size <= PIECE:
                    content = digest_range(fd, 0, s.st_size, manner.hash)
            finally:
                os.close(fd)
        else:
            if kind == "l":
                target = os.readlink(name, dir_fd=dir_fd)
            xattrs = _xattrs(b"/proc/self/fd/%d/%s" % (dir_fd, name), manner)
    except FileNotFoundError:
        return None
    except OSError as refused:
        error = refused.errno or 5
    owners, rdev = manner.owners, s.st_rdev if kind in "cb" else 0
    return Row(
        name, kind, 0 if kind == "l" else s.st_mode & 0o7777, s.st_uid if owners else 0, s.st_gid if owners else 0,
        s.st_size if kind == "f" else 0, s.st_mtime_ns, rdev, target, xattrs, content, sparse, s.st_nlink, s.st_ino & _INO,
        s.st_ctime_ns, error,
    )  # fmt: skip


def _to_open(s: os.stat_result, manner: Manner) -> bool:
    """A file is opened for its content, and where it may have holes."""
    return bool((manner.content and s.st_size) or s.st_blocks * 512 < s.st_size)


def open_to_read(dir_fd: int, name: bytes) -> int:
    """A file, without a trace in its access time where that is allowed. Raises OSError."""
    try:
        fd = os.open(name, _FILE | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        fd = os.open(name, _FILE, dir_fd=dir_fd)
    drop_pages(fd)
    return fd


def _has_hole(fd: int, size: int) -> bool:
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False


def _xattrs(target: Any, manner: Manner) -> Dict[str, str]:
    """Replicated attributes, values as digests."""
    if not manner.xattrs:
        return {}
    follow = isinstance(target, int)
    found = {}
    try:
        for name in os.listxattr(target, follow_symlinks=follow):
            if is_replicated(name, manner.trusted) and name not in PLAIN_ACLS:
                value = os.getxattr(target, name, follow_symlinks=follow)
                found[name] = blake2b(value, digest_size=16).hexdigest()
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
    return found


_NO_XATTRS = (61, 95)  # ENODATA: it went meanwhile; EOPNOTSUPP


def digest_range(fd: int, offset: int, length: int, algorithm: str) -> str:
    """Digest of a part of a file, in hex. Raises OSError, ValueError of an algorithm that is not known."""
    found = new(algorithm)
    at, end = offset, offset + length
    while at < end:
        data = os.pread(fd, min(_READ, end - at), at)
        if not data:
            break
        found.update(data)
        at += len(data)
    if length >= _KEEP_OUT:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    return found.hexdigest()


def packed(row: Row) -> bytes:
    """The row as bytes, the same at both ends if what it says is the same. Link counts and inodes are not in it."""
    xattrs = "".join("%s=%s;" % pair for pair in sorted(row.xattrs.items())) if row.xattrs else ""
    text = "\0%s %o %d %d %d %d %d %d %d %s %s" % (
        row.kind, row.mode, row.uid, row.gid, row.size, row.mtime, row.rdev, row.sparse, row.error, row.content, xattrs,
    )  # fmt: skip
    return row.name + text.encode("utf-8", "surrogateescape") + b"\0" + row.target + b"\n"


def digest_rows(rows: Iterable[Row]) -> str:
    """One digest for rows in the order of their names."""
    return blake2b(b"".join([packed(row) for row in rows]), digest_size=16).hexdigest()


def plain(row: Row) -> List[Any]:
    """A row as JSON has it."""
    values: List[Any] = list(row)
    values[0], values[8] = os.fsdecode(row.name), os.fsdecode(row.target)
    return values


def row_from(values: List[Any]) -> Row:
    """What ``plain`` made."""
    row = Row(*values)
    return row._replace(name=os.fsencode(values[0]), target=os.fsencode(values[8]))
