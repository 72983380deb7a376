"""What the root of a primary says of itself, if it was once a secondary and was promoted (secondary/promotion.py)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from replication.errors import NotFoundError, SeamarkError, UsageError


@dataclass(frozen=True, slots=True)
class PromotedRoot:
    """``done_ns``: when it was complete in itself, by the clock that stamps its files; what has an earlier ctime was not
    changed since. ``of``: the session that replicated to it: name, path, node, filters.
    """

    path: str
    session: str
    volume: str
    term: int
    at_ns: int
    done_ns: int
    of: dict[str, Any] = field(default_factory=dict)

    @property
    def index(self) -> str:
        return os.path.join(self.path, ".seamark", "index.sqlite")

    @property
    def filters(self) -> tuple[str, ...]:
        return tuple(self.of.get("filters") or ())


def owner_of(path: str) -> dict[str, Any] | None:
    """What ``.seamark/owner`` says; None: there is none. Raises SeamarkError when it cannot be read."""
    where = os.path.join(path, ".seamark", "owner")
    try:
        with open(where, encoding="utf-8") as file:
            found = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise SeamarkError(f"cannot read {where}: {error}") from None
    return found if isinstance(found, dict) else None


def term_of(path: str) -> int:
    """The term of a root: how often the roles of its pair were turned round, as far as it knows."""
    return int((owner_of(path) or {}).get("term", 0))


def promoted_root(path: str) -> PromotedRoot:
    """The root at ``path``. Raises NotFoundError for what was never a secondary, UsageError for what is still one."""
    if not os.path.isdir(path):
        raise NotFoundError(f"{path}: there is no such directory")
    owner = owner_of(path)
    if owner is None:
        raise NotFoundError(f"{path} was never a secondary: there is no .seamark/owner in it")
    promoted = owner.get("promoted")
    if promoted is None:
        raise UsageError(f"{path} is a secondary, and was not promoted: seamark failover {path}")
    if not promoted.get("done"):
        raise UsageError(
            f"the promotion of {path} was begun, and did not end: run 'seamark failover {path}' again"
        )
    return PromotedRoot(
        path=path, session=owner["session"], volume=owner["volume"], term=int(promoted["term"]),
        at_ns=int(promoted["at_ns"]), done_ns=int(promoted["done_ns"]),
        of=owner.get("of") or {},
    )  # fmt: skip
