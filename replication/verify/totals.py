"""What a comparison has proved so far: counts, and one digest of everything that was found equal."""

from __future__ import annotations

import builtins
import os
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from replication.secondary.inspection import packed

if TYPE_CHECKING:
    from replication.secondary.inspection import Manner, Row

_MODULUS = 1 << 256


@dataclass(slots=True)
class Totals:
    """``names``: compared and equal; ``contents``, ``bytes``: files of them whose content was digested, and its size.

    ``digest``: the sum of blake2b-256 over path and row of each, modulo 2**256: the same in whatever order and parts
    the same tree is compared, as long as contents are digested by the same hash.
    """

    list_equal: bool = False
    names: int = 0
    contents: int = 0
    bytes: int = 0
    excluded: int = 0
    young: int = 0
    digest: int = 0
    paths: list[str] = field(default_factory=list)

    def equal(self, directory: builtins.bytes, row: Row, manner: Manner) -> None:
        """Count a name that is the same at both ends."""
        self.names += 1
        if row.kind == "f" and manner.content:
            self.contents += 1
            self.bytes += row.size
        whole = directory + b"/" + packed(row)
        self.digest += int.from_bytes(blake2b(whole, digest_size=32).digest(), "big")
        if self.list_equal:
            self.paths.append(os.fsdecode(os.path.join(directory, row.name)))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "names": self.names, "contents": self.contents, "bytes": self.bytes, "excluded": self.excluded,
            "young": self.young, "digest": f"{self.digest % _MODULUS:064x}", "paths": self.paths,
        }  # fmt: skip


def add_digests(first: str, second: str) -> str:
    """The digest of both together."""
    return f"{(int(first or '0', 16) + int(second, 16)) % _MODULUS:064x}"
