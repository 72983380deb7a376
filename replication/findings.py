"""What an observer (observer.py) brings to light."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replication.failures import Failure
    from replication.transfer.item import FileItem


@dataclass(slots=True)
class Findings:
    """What looking brought to light."""

    needs: list[FileItem] = field(default_factory=list)
    meta: list[tuple[bytes, bytes]] = field(default_factory=list)  # (gfid, path)
    unlisted: list[tuple[bytes, bytes]] = field(default_factory=list)  # directories: (gfid, path)
    empty: set[bytes] = field(default_factory=set)  # those among them of which nothing is there
    failures: list[Failure] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)  # keys of failures that are none any more
    left: list[str] = field(default_factory=list)  # those of them whose name is gone
    doubted: set[bytes] = field(
        default_factory=set
    )  # files that changed under a name which is theirs no more
    astray: dict[bytes, bytes] = field(
        default_factory=dict
    )  # directories to be listed, not found: gfid, path
    found_again: list[tuple[bytes, bytes]] = field(
        default_factory=list
    )  # those that were missed before: gfid, path
    missed: list[tuple[bytes, bytes | None]] = field(
        default_factory=list
    )  # and nowhere known, as (gfid, path)
    strayed: bool = (
        False  # what came from outside is not at its name any more: it has another one, or is gone
    )
    names: int = 0
    files: int = 0  # whose content went along and is there
    bytes: int = 0  # of that content
    counts: dict[str, int] = field(default_factory=dict)
