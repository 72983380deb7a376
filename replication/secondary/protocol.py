"""Frames, and the errors that travel in them.

A frame is a u32be header length, a u32be payload length, the header (UTF-8 JSON object), the payload.
Names are str by os.fsdecode (UTF-8, surrogateescape); JSON escapes whatever is not ASCII.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import struct
import zlib
from typing import Any, BinaryIO, Dict, Optional, Tuple

VERSION = 4
LOG_LINE = "seamark-log: "  # begins a line on standard error that is for the log: level, text
MAX_HEADER = 64 << 20  # bytes; a larger one is no frame of ours
MAX_PAYLOAD = 32 << 20  # packed and unpacked; what we send has 8 MiB and a file of less than one
_MAX_VALUES = 4_000_000  # in a header: lists of nothing take thirty times as much memory as they have bytes
_LENGTHS = struct.Struct(">II")

_CODES = {
    errno.ENOSPC: "no-space",
    errno.EDQUOT: "no-space",
    errno.EROFS: "read-only",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EAGAIN: "busy",
}


class AgentError(Exception):
    """An error which the other side is told: a code of the protocol, a line for people, perhaps a path."""

    def __init__(self, code: str, message: str, path: Optional[str] = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = path


def code_of(error: OSError) -> str:
    """The protocol's code for a system error."""
    return _CODES.get(error.errno or 0, "io")


def agent_error(error: Exception) -> AgentError:
    """Whatever was raised, as an AgentError."""
    if isinstance(error, AgentError):
        return error
    if isinstance(error, OSError):
        name = error.filename
        path = os.fsdecode(name) if isinstance(name, (bytes, str)) else None
        return AgentError(code_of(error), error.strerror or str(error), path)
    if isinstance(error, sqlite3.Error):
        text = str(error)
        code = "no-space" if "full" in text else "read-only" if "readonly" in text else "io"
        return AgentError(code, "index: " + text)
    if isinstance(error, (KeyError, ValueError, TypeError, IndexError)):
        return AgentError("protocol", "malformed request: {}: {}".format(type(error).__name__, error))
    return AgentError("io", "{}: {}".format(type(error).__name__, error))


def read_frame(stream: BinaryIO) -> Optional[Tuple[Dict[str, Any], bytes]]:
    """The next frame, or None at the end of the stream. Raises AgentError on what is no frame."""
    lengths = stream.read(8)
    if not lengths:
        return None
    if len(lengths) < 8:
        raise AgentError("protocol", "the stream ended inside a frame")
    header_size, payload_size = _LENGTHS.unpack(lengths)
    if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
        raise AgentError("protocol", "not a frame")
    header = stream.read(header_size)
    payload = stream.read(payload_size) if payload_size else b""
    if len(header) < header_size or len(payload) < payload_size:
        raise AgentError("protocol", "the stream ended inside a frame")
    if header_size > _MAX_VALUES and header.count(b",") > _MAX_VALUES:
        raise AgentError("protocol", "a header of too many values")
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise AgentError("protocol", "not JSON: {}".format(error)) from None
    if not isinstance(fields, dict):
        raise AgentError("protocol", "the header is no object")
    return fields, payload


def unpacked(request: Dict[str, Any], payload: bytes) -> memoryview:
    """The content that came with a request, which says by ``z`` that it is compressed. Raises AgentError."""
    if not request.get("z"):
        return memoryview(payload)
    packed = zlib.decompressobj()
    try:
        content = packed.decompress(payload, MAX_PAYLOAD)
    except zlib.error as error:
        raise AgentError("protocol", "content: {}".format(error)) from None
    if not packed.eof:
        raise AgentError("protocol", "compressed content is cut off, or larger than any of ours")
    return memoryview(content)


def frame(header: Dict[str, Any], payload: bytes = b"") -> bytes:
    """A whole frame."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(encoded), len(payload)), encoded, payload))
