"""A changelog as text: one record a line, tab-separated, names escaped as in C."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TextIO
from uuid import UUID

from replication.changelog.reader import read_segment
from replication.changelog.record import Kind, Record, Segment

_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def dump(paths: Iterable[str | os.PathLike[str]], out: TextIO) -> None:
    """Print each file: a ``#`` line of where it comes from, then a record a line.

    Columns: kinds (``EMD``, ``-`` where not set, and perhaps ``B``), gfid or ``-``, parent or ``-``, name or ``-``, and for our own
    segments the path as it was when recorded. Raises OSError, SegmentDamaged after what could be read.
    """
    for path in paths:
        segment = read_segment(path)
        out.write(_heading(os.fspath(path), segment) + "\n")
        out.writelines(_line(record, segment) + "\n" for record in segment)
        if segment.info.torn_bytes:
            out.write(f"# torn: {segment.info.torn_bytes} bytes at the end make no whole block\n")


def _heading(path: str, segment: Segment) -> str:
    info = segment.info
    line = f"# {path.encode(errors='surrogateescape').decode(errors='replace')}: {info.format} {info.version}"
    if info.format == "seamark":
        line += f", segment {info.number}, {info.start_ns} to {info.end_ns if info.closed else '(open)'}"
    return line


def _line(record: Record, segment: Segment) -> str:
    kinds = "".join(letter if record.kinds & Kind[letter] else "-" for letter in "EMD") + "B" * bool(
        record.kinds & Kind.B
    )
    columns = [kinds, _gfid(record.gfid), _gfid(record.parent)]
    columns.append(
        "-" if record.name is None else escape(record.name).replace("-", "\\x2d", record.name == b"-")
    )
    hint = segment.dirs.get(record.parent or record.gfid or b"")
    if hint is not None:
        name = record.name or b""
        columns.append(escape(b"/".join(part for part in (hint.path, name) if part) or b"."))
    return "\t".join(columns)


def _gfid(gfid: bytes | None) -> str:
    return "-" if gfid is None else str(UUID(bytes=gfid))


def escape(name: bytes) -> str:
    r"""A name as printable text, without loss: ``\\\\``, ``\\t``, ``\\n`` and ``\\xNN``."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = name.decode("ascii", "surrogateescape")
    return "".join(map(_escape_one, text))


def _escape_one(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable():
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode())
