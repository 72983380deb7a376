"""Names in SQLite: bytes, kept as text where they are UTF-8, so that people can read them, else as a BLOB."""

from __future__ import annotations

import os


def encode(text: str | None) -> str | bytes | None:
    """The value of a column for ``text``, as os.fsdecode made it."""
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def decode(value: object) -> object:
    """The inverse of encode; other types are left as they are."""
    return os.fsdecode(value) if isinstance(value, bytes) else value
