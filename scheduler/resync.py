"""What a person wants compared again: a file or a tree, healed where somebody changed it on the secondary.

A request is a file in the session's state directory, so it survives everything, and waits for a session that is
stopped. The far agent forgets which versions it has below the path; then the names are looked at again, and
what the looks find is compared by digest. It is done when the front has passed the look, and nothing
below the path is left to be compared.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from replication import session_file
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call

if TYPE_CHECKING:
    from replication.session import SessionDir
    from tasks.context import Context

_NAMES_AT_ONCE = 1000


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """``path``: bytes relative to the root, in hex. ``looked_ns``: when it was looked at; 0 not yet."""

    path: str
    looked_ns: int = 0


def _directory(place: SessionDir) -> Path:
    return place.path / "resync"


def ask(place: SessionDir, path: bytes) -> Path:
    """Ask for a path to be compared again; the file of the request, which is gone when that was done."""
    file = _directory(place) / f"{uuid.uuid4().hex}.json"
    _write(file, Request(path=path.hex()))
    return file


def _write(file: Path, request: Request) -> None:
    session_file.replace_file(file, msgspec.json.encode(request).decode())


def _read(file: Path) -> Request | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Request)
    except (OSError, ValueError):
        return None


def pending(place: SessionDir) -> list[Path]:
    """Files of the requests that are not done."""
    return sorted(_directory(place).glob("*.json"))


def resync_pending(ctx: Context) -> str:
    """One step of each request. Raises SeamarkError, SecondaryError."""
    brick = ctx.progress.brick()
    client = ctx.secondary(brick.epoch).client
    done = 0
    for file in pending(ctx.place):
        request = _read(file)
        if request is None:
            file.unlink(missing_ok=True)  # damaged, or withdrawn
            continue
        path = bytes.fromhex(request.path)
        if not request.looked_ns:
            client.doubt(path)
            if _look(ctx, path):
                _write(file, msgspec.structs.replace(request, looked_ns=time.time_ns()))
        elif brick.front_ns > request.looked_ns and not client.doubt(path, count=True):
            file.unlink(missing_ok=True)
            done += 1
    return f"{done} done"


def _look(ctx: Context, path: bytes) -> bool:
    """Have the names recorded as ones that may have changed; where nothing is recorded, each scan looks."""
    if ctx.place.detector() == "scan":
        return True
    directory, name = os.path.split(path)
    names = [name] if path else [n for n in os.listdir(ctx.volume.mounted.root_fd) if n != ".seamark"]
    try:
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = [os.fsdecode(each) for each in names[start : start + _NAMES_AT_ONCE]]
            agent_call(ctx.place.changelog, "look", dir=os.fsdecode(directory), names=some, kinds="EM")
    except AgentUnreachable:
        return False
    except AgentRefused:
        pass  # its directory is gone here: that was recorded, or the next comparison of the tree finds it
    return True
