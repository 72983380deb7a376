"""A segment of a directory volume on disk: written block by block, each with a checksum.

docs/formats.md describes the bytes. A segment holds definitions (an object's gfid, handle and path)
and records that refer to them by number, so it can be read without any other segment.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple
from zlib import crc32

from replication.changelog.record import DirHint, Kind, Record, Segment, SegmentDamaged, SegmentHeader

# CR LF shows a file that went through a text-mode copy.
MAGIC = b"SmkSeg\r\n"
VERSION = 1
_HEADER = struct.Struct("<8sHHQQ")  # magic, version, flags, number, start_ns; then crc32 of these
_BLOCK = struct.Struct("<BxxxIII")  # type, payload length, items, crc32 of the payload; then crc32 of these
_CRC = struct.Struct("<I")
_DEFINITION = struct.Struct("<B16sHH")  # flags, gfid, length of the handle, length of the path
_RECORD = struct.Struct("<BIB")  # kinds, number of a definition, length of the name (0: the object itself)
_END = struct.Struct("<QQ")  # end_ns, records
HEADER_SIZE = _HEADER.size + _CRC.size
BLOCK_HEADER_SIZE = _BLOCK.size + _CRC.size

_DEFINITIONS, _RECORDS, _CLOSED = b"DRZ"
_IS_OBJECT = 1  # a definition's flag: not a directory, its path is unknown
_BLOCK_BYTES = 256 * 1024
_KINDS = tuple(Kind(value) for value in range(16))


class Place(NamedTuple):
    """All that is recorded in one directory (or of one object): the kinds of each name, b"" for itself."""

    gfid: bytes
    hint: DirHint
    is_object: bool
    names: Mapping[bytes, int]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was left of a segment that its writer did not finish."""

    header: SegmentHeader
    records: int
    size: int


class SegmentWriter:
    """Writes one segment, append-only. Blocks reach the file whole; nothing is synced to the disk."""

    def __init__(self, path: str, number: int, start_ns: int) -> None:
        self.path = path
        self.records = 0
        self.size = 0
        self._definitions = 0
        self._file: BinaryIO = open(path, "xb", buffering=0)
        head = _HEADER.pack(MAGIC, VERSION, 0, number, start_ns)
        try:
            self._write(head + _CRC.pack(crc32(head)))
        except OSError:
            self._file.close()
            raise

    def append(self, places: Iterable[Place]) -> None:
        """Add what is recorded in these places. Raises OSError."""
        definitions: list[bytes] = []
        records: list[bytes] = []
        size = 0
        for place in places:
            number = self._definitions + len(definitions)
            definitions.append(_define(place))
            size += len(definitions[-1])
            for name, kinds in place.names.items():
                records.append(_RECORD.pack(kinds, number, len(name)) + name)
                size += _RECORD.size + len(name)
                if size > _BLOCK_BYTES:
                    self._flush(definitions, records)
                    size = 0
        self._flush(definitions, records)

    def close(self, end_ns: int) -> None:
        """Say that the segment is complete. Raises OSError."""
        self._block(_CLOSED, [_END.pack(end_ns, self.records)])
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is, without the closing block."""
        self._file.close()

    def _flush(self, definitions: list[bytes], records: list[bytes]) -> None:
        if definitions:
            self._block(_DEFINITIONS, definitions)
            self._definitions += len(definitions)
        if records:
            self._block(_RECORDS, records)
            self.records += len(records)
        definitions.clear()
        records.clear()

    def _block(self, kind: int, items: list[bytes]) -> None:
        payload = b"".join(items)
        self._write(_block_header(kind, payload, len(items)) + payload)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(data)


def _define(place: Place) -> bytes:
    flags = _IS_OBJECT if place.is_object else 0
    handle, path = place.hint.handle, place.hint.path
    return _DEFINITION.pack(flags, place.gfid, len(handle), len(path)) + handle + path


def _block_header(kind: int, payload: bytes, items: int) -> bytes:
    head = _BLOCK.pack(kind, len(payload), items, crc32(payload))
    return head + _CRC.pack(crc32(head))


class _Block(NamedTuple):
    kind: int
    items: int
    start: int
    end: int


class _Scan:
    """The blocks of a segment, checked; stops at a torn tail, raises SegmentDamaged for anything else."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.data = data
        self.blocks: list[_Block] = []
        self.number = self.start_ns = self.end_ns = 0
        self.records = 0
        self.closed = False
        self.good = 0  # bytes that are whole and right
        if len(data) >= HEADER_SIZE or not MAGIC.startswith(data[: len(MAGIC)]):
            self._header()
            self._scan()

    def _header(self) -> None:
        data = self.data
        if data[: len(MAGIC)] != MAGIC:
            raise SegmentDamaged(self.path, 0, "this is not a changelog segment")
        magic, version, _, self.number, self.start_ns = _HEADER.unpack_from(data)
        if _CRC.unpack_from(data, _HEADER.size)[0] != crc32(data[: _HEADER.size]):
            raise SegmentDamaged(self.path, 0, "the header's checksum is wrong")
        if version != VERSION:
            raise SegmentDamaged(self.path, len(magic), f"format version {version} is not known here")
        self.good = HEADER_SIZE

    def _scan(self) -> None:
        while self.good < len(self.data):
            block = self._next(self.good)
            if block is None:
                return
            if self.closed:
                raise SegmentDamaged(self.path, self.good, "something follows the closing block")
            self._take(block)
            self.good = block.end

    def _next(self, offset: int) -> _Block | None:
        """The block at ``offset``, or None where the file ends within it."""
        data = self.data
        start = offset + BLOCK_HEADER_SIZE
        if start > len(data):
            return None
        kind, length, items, checksum = _BLOCK.unpack_from(data, offset)
        if _CRC.unpack_from(data, offset + _BLOCK.size)[0] != crc32(data[offset : offset + _BLOCK.size]):
            # After a power failure a file may be longer than what was written to it, in zeros.
            if not any(data[offset:]):
                return None
            raise SegmentDamaged(self.path, offset, "a block header's checksum is wrong")
        if start + length > len(data):
            return None
        if crc32(data[start : start + length]) != checksum:
            raise SegmentDamaged(self.path, start, "a block's checksum is wrong")
        return _Block(kind, items, start, start + length)

    def _take(self, block: _Block) -> None:
        if block.kind == _CLOSED:
            if block.end - block.start != _END.size:
                raise SegmentDamaged(self.path, block.start, "the closing block has another size")
            self.end_ns, records = _END.unpack_from(self.data, block.start)
            if records != self.records:
                raise SegmentDamaged(
                    self.path, block.start, f"{records} records announced, {self.records} found"
                )
            self.closed = True
            return
        if block.kind not in (_DEFINITIONS, _RECORDS):
            raise SegmentDamaged(self.path, block.start, f"block type {block.kind} is not known here")
        if block.kind == _RECORDS:
            self.records += block.items
        self.blocks.append(block)

    def header(self) -> SegmentHeader:
        return SegmentHeader(
            "seamark", str(VERSION), self.number, self.start_ns, self.end_ns, self.closed,
            len(self.data) - self.good,
        )  # fmt: skip


class _Records:
    """The records of the checked blocks, decoded each time somebody iterates."""

    def __init__(self, scan: _Scan, definitions: list[tuple[bytes, bool]]) -> None:
        self._scan = scan
        self._definitions = definitions

    def __iter__(self) -> Iterator[Record]:
        try:
            yield from self._decode()
        except (struct.error, IndexError):  # its checksum is right: whoever wrote it meant something else
            raise SegmentDamaged(self._scan.path, 0, "a record does not fit its block") from None

    def _decode(self) -> Iterator[Record]:
        data, definitions = self._scan.data, self._definitions
        unpack, size = _RECORD.unpack_from, _RECORD.size
        for block in self._scan.blocks:
            if block.kind != _RECORDS:
                continue
            offset = block.start
            while offset < block.end:
                kinds, number, length = unpack(data, offset)
                offset += size
                gfid = definitions[number][0]
                if length:
                    yield Record(_KINDS[kinds & 15], None, gfid, data[offset : offset + length])
                    offset += length
                else:
                    yield Record(_KINDS[kinds & 15], gfid, None, None)
            if offset != block.end:
                raise SegmentDamaged(self._scan.path, block.start, "a name does not fit its block")


def parse_segment(path: str, data: bytes) -> Segment:
    """Read a segment of ours. Raises SegmentDamaged; a torn tail is left out and counted in ``info``."""
    scan = _Scan(path, data)
    dirs: dict[bytes, DirHint] = {}
    objects: dict[bytes, DirHint] = {}
    definitions: list[tuple[bytes, bool]] = []
    for block in scan.blocks:
        if block.kind == _DEFINITIONS:
            for gfid, is_object, hint in _definitions(path, data, block):
                (objects if is_object else dirs)[gfid] = hint
                definitions.append((gfid, is_object))
    return Segment(_Records(scan, definitions), scan.header(), dirs, objects)


def _definitions(path: str, data: bytes, block: _Block) -> Iterator[tuple[bytes, bool, DirHint]]:
    offset = block.start
    while offset < block.end:
        if offset + _DEFINITION.size > block.end:
            break
        flags, gfid, handle_size, path_size = _DEFINITION.unpack_from(data, offset)
        handle_end = offset + _DEFINITION.size + handle_size
        handle = data[offset + _DEFINITION.size : handle_end]
        offset = handle_end + path_size
        if offset > block.end:
            break
        yield gfid, bool(flags & _IS_OBJECT), DirHint(handle, data[handle_end:offset])
    if offset != block.end:
        raise SegmentDamaged(path, block.start, "a definition does not fit its block")


def recover(path: str) -> Recovered:
    """Cut the torn tail off an unfinished segment, and close it. Raises SegmentDamaged, OSError.

    SegmentDamaged also where not even the header is whole.
    """
    with open(path, "r+b") as file:
        scan = _Scan(path, file.read())
        header = scan.header()
        if scan.good == 0:
            raise SegmentDamaged(path, 0, "the header is torn")
        if not scan.closed:
            file.truncate(scan.good)
            file.seek(scan.good)
            payload = _END.pack(scan.start_ns, scan.records)
            file.write(_block_header(_CLOSED, payload, 1) + payload)
        size = file.seek(0, os.SEEK_END)
    return Recovered(header, scan.records, size)
