"""What a secondary agent answers: a reply, what it makes of observations, or an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from replication.errors import ExitCode
from replication.remote.errors import RemoteError

_TEMPORARY = {"no-space", "io", "stale-epoch", "out-of-order", "crawl-closed"}


class SecondaryError(RemoteError):
    """The secondary agent refused or failed; ``code`` is one of the protocol's, ``path`` where it happened."""

    def __init__(self, code: str, message: str, path: str | None = None) -> None:
        where = f" ({path})" if path else ""
        super().__init__(f"secondary: {message}{where} [{code}]")
        self.code = code
        self.reason = message
        self.path = path
        if code in _TEMPORARY:
            self.exit_code = ExitCode.TEMPORARY
        elif code == "owned":
            self.exit_code = ExitCode.LOCKED


class Whereabouts(NamedTuple):
    """A directory on the secondary: whether all that is in it was listed, and its path, None where it has no name."""

    listed: bool
    path: bytes | None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its header, and a payload (of which the operations of today have none)."""

    header: dict[str, Any]
    payload: bytes = b""


_Gfids = list[str]
_Needs = list[tuple[str, str]]
_Errors = list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Observed:
    """What the secondary makes of observations. gfids in hex, as they travel.

    ``need``: (gfid, "new" | "data" | "compare"); ``meta``: gfids whose metadata is wanted; ``list``:
    directories to be listed completely; ``unknown``: parents whose names were not applied;
    ``errors``: (gfid, code, message).
    """

    need: _Needs
    meta: _Gfids
    list: _Gfids
    unknown: _Gfids
    errors: _Errors
    counts: dict[str, int] = field(default_factory=dict)
    rebuilding: bool = False
    ticket: int = 0  # of this look: goes back with the content that it makes somebody read
    empty: frozenset[str] = frozenset()  # those of ``list`` of which nothing is known there
    kept: tuple[
        tuple[str, str, str], ...
    ] = ()  # names that files lost which have others: gfid, parent's, name
    content: tuple[int, int] = (0, 0)  # files and bytes that came with the look and were wanted

    @classmethod
    def of(cls, header: dict[str, Any]) -> Observed:
        return cls(
            [(gfid, how) for gfid, how in header["need"]],
            header["meta"],
            header["list"],
            header["unknown"],
            [(e[0], e[1], f"{e[3]}: {e[2]}" if len(e) > 3 and e[3] else e[2]) for e in header["errors"]],
            header["counts"],
            header["rebuilding"],
            header["ticket"],
            frozenset(header["empty"]),
            tuple((gfid, parent, name) for gfid, parent, name in header.get("kept", ())),
            tuple(header.get("content", (0, 0))),
        )
