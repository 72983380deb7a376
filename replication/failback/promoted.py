"""What the root of a primary says of itself, if it was once a secondary and was promoted (secondary/promotion.py)."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

from replication.errors import NotFoundError, SeamarkError, UsageError
from replication.secondary.boot import boot_id
from replication.secondary.owner import write_owner
from replication.volume.stime import marked_ns

_DRIFT_NS = 2 * 10**9
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class PromotedRoot:
    """``since_ns``: when it was promoted, by the clock that stamps its files; what has an earlier ctime was not changed
    since, unless that clock was set (``clock_was_set``). ``done_ns``: when it was complete; what changed until then we did. ``mark_ns``: up to when everything was there. ``of``: the session
    that replicated to it: name, path, node, filters.
    """

    path: str
    session: str
    volume: str
    term: int
    at_ns: int
    since_ns: int
    done_ns: int
    mark_ns: int
    boot: str
    uptime_ns: int
    of: dict[str, Any] = field(default_factory=dict)

    @property
    def index(self) -> str:
        return os.path.join(self.path, ".seamark", "index.sqlite")

    def clock_was_set(self) -> bool:
        """Whether the clock has gone back, or jumped, since: then times say nothing. Over a reboot only the former shows."""
        passed = time.time_ns() - self.since_ns
        if self.boot != boot_id():
            return passed < 0
        return abs(passed - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.uptime_ns)) > _DRIFT_NS

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
        at_ns=int(promoted["at_ns"]), since_ns=int(promoted["since_ns"]), done_ns=int(promoted["done_ns"]), mark_ns=marked_ns(promoted.get("mark")),
        boot=str(promoted["boot"]), uptime_ns=int(promoted["uptime_ns"]),
        of=owner.get("of") or {},
    )  # fmt: skip


def hand_over(path: str) -> None:
    """The roles are turned round again, and this root's session of before may make a secondary of it by its own key."""
    owner = owner_of(path)
    if owner is None or "promoted" not in owner:
        return
    fd = os.open(os.path.join(path, ".seamark"), _DIR)
    try:
        write_owner(fd, {**owner, "promoted": {**owner["promoted"], "handed": True}})
    finally:
        os.close(fd)
