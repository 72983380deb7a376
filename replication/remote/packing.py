"""Compressing what is sent over a thin link, where it pays."""

from __future__ import annotations

import zlib

_SAMPLE = 16 << 10  # bytes at the beginning, in the middle and at the end
_WORTH = 0.9  # of its size, at most: less gain costs more time than it saves


def packed(payload: bytes) -> bytes | None:
    """The payload compressed (zlib), or None where that gains little: photographs, archives, noise.

    Samples decide, so that what does not compress costs nearly nothing.
    """
    middle = max(0, len(payload) - _SAMPLE) // 2
    sample = payload[:_SAMPLE] + payload[middle : middle + _SAMPLE] + payload[-_SAMPLE:]
    if len(payload) > 4 * _SAMPLE and len(zlib.compress(sample, 1)) > _WORTH * len(sample):
        return None
    small = zlib.compress(payload, 1)
    return small if len(small) < _WORTH * len(payload) else None
