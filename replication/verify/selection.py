"""Which part of a tree is compared: all of it, slice n of t, a share, or about so many bytes.

Names fall to parts by a digest of their paths, so t slices cover everything exactly once, whoever cuts them. Names of
one inode stay together: by its number, so that groups of hard links can be compared.
"""

from __future__ import annotations

import re
import secrets

from replication.quantities import Size

WHOLE = 1 << 64
_SLICE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")


def slice_range(number: int, slices: int) -> tuple[int, int]:
    """The digests of slice ``number`` (from 1) of ``slices``: from, and up to but not, 64-bit numbers."""
    return WHOLE * (number - 1) // slices, WHOLE * number // slices


class Subset:
    """What --subset means. ``salt``: names fall another way each time, where a sample is taken."""

    def __init__(self, text: str = "") -> None:
        """Raises ValueError, with what would be right."""
        self.text = text.strip()
        self.number, self.slices, self.share, self.bytes, self.salt = 1, 1, 1.0, 0, ""
        if not self.text:
            return
        if match := _SLICE.fullmatch(self.text):
            self.number, self.slices = int(match[1]), int(match[2])
            if not 1 <= self.number <= self.slices:
                raise ValueError(f"{text!r} will not do: give n/t with n from 1 to t")
            return
        self.salt = secrets.token_hex(8)
        if match := _SHARE.fullmatch(self.text):
            self.share = float(match[1]) / 100
            if not 0 < self.share <= 1:
                raise ValueError(f"{text!r} will not do: give more than 0 and at most 100 percent")
            return
        try:
            self.bytes = Size.parse(self.text)
        except ValueError:
            self.bytes = 0
        if self.bytes <= 0:
            raise ValueError(f"{text!r} will not do: give n/t, a share as 5%, or an amount as 10G")

    def range_of(self, total_bytes: int) -> tuple[int, int]:
        """The digests that are taken, of a tree that holds so many bytes."""
        if self.slices > 1:
            return slice_range(self.number, self.slices)
        share = min(1.0, self.bytes / total_bytes) if self.bytes and total_bytes else self.share
        return 0, WHOLE if share >= 1 else int(WHOLE * share)
