"""Gluster's changelogs (versions 1.1 and 1.2, as ASCII or binary) as records.

The format has no lengths, no checksums and no separators beyond a NUL after each field, and a binary
gfid may hold a NUL: it can only be read field by field. docs/formats.md says what was observed of it. Version 1.1
(GlusterFS before 3.7) has no path of what was deleted; libgfchangelog tells the two apart in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from uuid import UUID

from replication.changelog.record import Kind, Record, Segment, SegmentDamaged, SegmentHeader, SegmentTorn

MAGIC = b"GlusterFS Changelog"
_HEADER = re.compile(rb"GlusterFS Changelog \| version: v(\d+)\.(\d+) \| encoding : (\d+)\n")
_BINARY, _ASCII = 1, 2
HEADER_SIZE = 51  # bytes, of the versions that there are

# File operation numbers (glusterfs.h, enum glusterfs_fop_t), by the fields that follow them.
_MKNOD, _MKDIR, _UNLINK, _RMDIR, _SYMLINK, _RENAME, _LINK, _CREATE = 3, 4, 5, 6, 7, 8, 9, 23
_MADE = {_MKNOD, _MKDIR, _CREATE}
_REMOVED = {_UNLINK, _RMDIR}
_NAMED = {_SYMLINK, _LINK}


class Encoding(NamedTuple):
    """What the header of a changelog says of its records. ``minor``: of version 1."""

    binary: bool
    minor: int

    def __str__(self) -> str:
        return f"1.{self.minor} {'binary' if self.binary else 'ascii'}"


class _Fields:
    """A cursor over the fields of one changelog."""

    def __init__(self, path: str, data: bytes, offset: int, encoding: Encoding) -> None:
        self.path = path
        self.data = data
        self.at = offset
        binary = encoding.binary
        self.tells_deleted_path = encoding.minor >= 2
        self.gfid: Callable[[], bytes] = self._binary_gfid if binary else self._ascii_gfid
        self.number: Callable[[], int] = self._binary_number if binary else self._ascii_number
        self.place: Callable[[], tuple[bytes, bytes]] = self._binary_place if binary else self._ascii_place

    def fail(self, why: str) -> SegmentDamaged:
        return SegmentDamaged(self.path, self.at, why)

    def torn(self) -> SegmentTorn:
        return SegmentTorn(self.path, self.at, "the file ends within a field")

    def text(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise self.torn()
        field = self.data[self.at : end]
        self.at = end + 1
        return field

    def nul(self) -> None:
        if self.at >= len(self.data):
            raise self.torn()
        if self.data[self.at : self.at + 1] != b"\0":
            raise self.fail("a field does not end where it should")
        self.at += 1

    def _fixed(self, size: int) -> bytes:
        field = self.data[self.at : self.at + size]
        if len(field) < size:
            raise self.torn()
        self.at += size
        return field

    def _binary_gfid(self) -> bytes:
        gfid = self._fixed(16)
        self.nul()
        return gfid

    def _binary_number(self) -> int:
        number = int.from_bytes(self._fixed(4), "little")
        self.nul()
        return number

    def _binary_place(self) -> tuple[bytes, bytes]:
        parent = self._fixed(16)
        if self._fixed(1) != b"/":
            raise self.fail("no slash between a parent and a name")
        return parent, self.text()

    def _ascii_gfid(self) -> bytes:
        return self._uuid(self.text())

    def _ascii_number(self) -> int:
        field = self.text()
        if not field.isdigit():
            raise self.fail(f"{field!r} is not a number")
        return int(field)

    def _ascii_place(self) -> tuple[bytes, bytes]:
        field = self.text()
        if field[36:37] != b"/":
            raise self.fail("no slash between a parent and a name")
        return self._uuid(field[:36]), field[37:]

    def _uuid(self, field: bytes) -> bytes:
        try:
            return UUID(field.decode("ascii")).bytes
        except ValueError:
            raise self.fail(f"{field[:40]!r} is not a gfid") from None


def parse_gluster(path: str, data: bytes) -> Segment:
    """Read a changelog of Gluster's. Raises SegmentDamaged, for a torn last record too (no torn tails here:
    nothing in the format tells one from damage), when the header is unknown or while ``records`` is iterated.
    """
    encoding, start = read_header(path, data)
    return Segment(_Records(path, data, start, encoding), SegmentHeader("gluster", str(encoding)))


class _Records:
    def __init__(self, path: str, data: bytes, start: int, encoding: Encoding) -> None:
        self._path, self._data, self._start, self._encoding = path, data, start, encoding

    def __iter__(self) -> Iterator[Record]:
        fields = _Fields(self._path, self._data, self._start, self._encoding)
        while fields.at < len(self._data):
            yield from _next(fields)


def records_so_far(path: str, data: bytes, encoding: Encoding) -> Iterator[tuple[list[Record], int]]:
    """The records of a piece of a changelog that may be cut off anywhere at its end: those of each, and where it ends.

    Raises SegmentDamaged, but not for what is cut off.
    """
    fields = _Fields(path, data, 0, encoding)
    while fields.at < len(data):
        try:
            found = list(_next(fields))
        except SegmentTorn:
            return
        yield found, fields.at


def read_header(path: str, data: bytes) -> tuple[Encoding, int]:
    """How a changelog is written, and where its records begin. Raises SegmentDamaged, SegmentTorn."""
    if len(data) < HEADER_SIZE and MAGIC.startswith(data[: len(MAGIC)]):
        raise SegmentTorn(path, len(data), "the header is not whole")
    header = _HEADER.match(data)
    if header is None:
        raise SegmentDamaged(path, 0, "not a changelog header of Gluster's")
    major, minor, encoding = (int(group) for group in header.groups())
    if (major, minor) not in ((1, 1), (1, 2)) or encoding not in (_BINARY, _ASCII):
        raise SegmentDamaged(path, 0, f"changelog v{major}.{minor}, encoding {encoding}, is not known here")
    return Encoding(encoding == _BINARY, minor), header.end()


def _next(fields: _Fields) -> Iterator[Record]:
    letter = fields.data[fields.at : fields.at + 1]
    if letter not in (b"E", b"M", b"D"):
        raise fields.fail(f"{letter!r} is not a record")
    fields.at += 1
    gfid = fields.gfid()
    if letter == b"D":
        yield Record(Kind.D, gfid, None, None)
    elif letter == b"M":
        fields.number()
        yield Record(Kind.M, gfid, None, None)
    else:
        yield from _entry(fields, gfid)


def _entry(fields: _Fields, gfid: bytes) -> Iterator[Record]:
    operation = fields.number()
    if operation in _MADE:
        for _ in ("mode", "uid", "gid"):
            fields.number()
    elif operation not in _REMOVED | _NAMED | {_RENAME}:
        raise fields.fail(f"file operation {operation} has no known fields")
    parent, name = fields.place()
    yield Record(Kind.E, gfid, parent, name, operation in _MADE, operation == _MKDIR)
    if operation == _RENAME:
        parent, name = fields.place()
        yield Record(Kind.E, gfid, parent, name)
    elif operation in _REMOVED and fields.tells_deleted_path and not fields.text():
        # An unknown path of a deleted object is written as two NULs.
        fields.nul()
