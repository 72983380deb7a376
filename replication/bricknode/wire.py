"""What travels between a node and who follows its bricks: frames of secondary/protocol.py, read without waiting, and records in them.

Requests:

    {"op": "follow", "brick": PATH, "place": PLACE or null}     from there on, or from now on
    {"op": "forget", "brick": PATH}
    {"op": "round", "n": N, "whole": BOOL}                      everything that is recorded by now; see FollowedBrick.compare
    {"op": "search", "brick": PATH, "n": N, "ago_ns": NS or null, "unexplained_ago_ns": NS}
    {"op": "bricks"}

Answers, in the order in which things happened:

    {"brick": PATH, "began": BOOL, "place": PLACE}              whether it goes on from where it was told to
    {"brick": PATH, "error": TEXT, "unasked": BOOL}             it is not followed (any more): why
    {"brick": PATH, "records": COUNT} + the records
    {"brick": PATH, "place": PLACE}                             all before it is told: where there is much to tell
    {"brick": PATH, "gap": REASON, "ago_ns": NS or null}        see BrickTail's on_lost
    {"brick": PATH, "restarted": true, "ago_ns": NS or null}    and on_restart
    {"round": N, "bricks": {PATH: {"place", "compared", "beat_ms", "recording", "unread", "uneasy"}}}
    {"brick": PATH, "records": COUNT, "search": N}, {"brick": PATH, "searched": N}
    {"bricks": {PATH: {"recording", "beat_ms", "arbiter"}}, "version": VERSION, "error": TEXT or ""}
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from replication.changelog.record import Kind, Record
from replication.secondary.protocol import AgentError, read_frame

VERSION = 2
READY = b"seamark-bricks ready\n"
_LENGTHS = struct.Struct(">II")
_MAX_FRAME = 4 << 20  # bytes; a node sends pieces of a quarter of that
MAX_RECORDS = 5000  # in one frame
_RECORD = struct.Struct(">B16s16sH")  # flags, gfid, parent, length of the name
_FIRST, _NAMED = 8, 16
_KINDS = 7
_NONE = bytes(16)


class Frames:
    """What came so far, cut into frames."""

    def __init__(self) -> None:
        self._came = bytearray()

    def add(self, data: bytes) -> None:
        self._came += data

    def next(self) -> tuple[dict[str, Any], bytes] | None:
        """None: it is not whole yet. Raises AgentError for what is no frame."""
        if len(self._came) < _LENGTHS.size:
            return None
        size = _LENGTHS.size + sum(_LENGTHS.unpack_from(self._came))
        if size > _MAX_FRAME:
            raise AgentError("protocol", "not a frame")
        if len(self._came) < size:
            return None
        piece = bytes(self._came[:size])
        del self._came[:size]
        return read_frame(io.BytesIO(piece))


def encode(records: Iterable[Record]) -> bytes:
    parts = []
    for record in records:
        name = record.name or b""
        named = record.parent is not None and record.name is not None
        flags = int(record.kinds) | (_FIRST if record.first else 0) | (_NAMED if named else 0)
        parts.append(_RECORD.pack(flags, record.gfid or _NONE, record.parent or _NONE, len(name)) + name)
    return b"".join(parts)


def decode(payload: bytes) -> Iterator[Record]:
    """Raises AgentError for what are no records."""
    at = 0
    while at < len(payload):
        if len(payload) - at < _RECORD.size:
            raise AgentError("protocol", "a record is cut off")
        flags, gfid, parent, length = _RECORD.unpack_from(payload, at)
        at += _RECORD.size
        name = payload[at : at + length]
        at += length
        kinds = Kind(flags & _KINDS)
        if len(name) < length or not kinds or flags >= 2 * _NAMED:
            raise AgentError("protocol", "not a record")
        if not flags & _NAMED:
            yield Record(kinds, gfid, None, None)
            continue
        if not name or len(name) > 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise AgentError("protocol", "not a name")
        yield Record(kinds, gfid, parent, name, bool(flags & _FIRST))
