"""Snapshots: read-only copies of the secondary as it was when the primary's side said that all up to a mark is here.

``.seamark/snapshots/<time it was taken>/`` holds ``root``, a secondary complete in itself, and ``record``. How long each is
kept at least was said when it was taken, and stands in its record: whoever says something else later, by whatever right,
can have later ones kept less long, and this one longer.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, List, Optional

from replication.secondary import copies, homes, layout
from replication.secondary.agent import Agent
from replication.secondary.clones import set_read_only
from replication.secondary.protocol import AgentError
from replication.secondary.retention import DEFAULT, Retention
from replication.secondary.steps import Work
from replication.secondary.syscalls import syncfs

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z(-[0-9]{1,4})?")


def method(agent: Agent) -> str:
    """How snapshots are taken here; empty: they cannot be."""
    return copies.method_here(agent.tree.root_fd, agent.staging_fd)


def snapshot(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """The operation `snapshot`: take one, then remove those that no rule keeps any more."""
    return agent.under_way.go_on("snapshot", lambda: _take(agent, request))


def _take(agent: Agent, request: Dict[str, Any]) -> Work:
    keep = _retention(request["keep"])
    mark = _mark(str(request["mark"]))
    checkpoint = request.get("checkpoint")
    with (
        agent.transaction()
    ):  # refused where somebody else has taken over; what a dead process left is mended
        pass
    how = method(agent)
    if not how:
        raise AgentError(
            "unsupported", "this file system has no snapshots: it has to be btrfs, or XFS made with reflink=1"
        )
    home = homes.Home(agent.tree.hidden_fd, layout.SNAPSHOTS)
    try:
        began = time.monotonic()
        taken_ns = time.time_ns()
        with copies.Source(agent.tree.root_fd, agent) as source:
            yield from copies.copy(source, home.fd, how)
        made = yield from copies.make_complete(_root_of(home))
        record = {
            "taken_ns": taken_ns, "mark": mark, "checkpoint": None if checkpoint is None else int(checkpoint), "method": how,
            "keep": str(keep), **made, "took_s": round(time.monotonic() - began, 3),
        }  # fmt: skip
        home.write(record)
        _seal(home, how)
        name = _rename(home, taken_ns)
    except BaseException:
        for _ in home.throw_away():
            pass
        raise
    finally:
        home.close()
    removed = yield from _thin(agent, keep)
    return {"snapshot": {**record, "name": name}, "removed": removed}


def _root_of(home: homes.Home) -> int:
    return os.open(copies.ROOT, _DIR, dir_fd=home.fd)


def _seal(home: homes.Home, how: str) -> None:
    """It is on the disk, and nothing writes to it any more."""
    root_fd = _root_of(home)
    try:
        syncfs(root_fd)
        if how == copies.BTRFS:
            set_read_only(root_fd, True)
    finally:
        os.close(root_fd)


def _rename(home: homes.Home, taken_ns: int) -> str:
    base = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(taken_ns // 10**9))
    attempt = 0
    while True:
        name = base if not attempt else "{}-{}".format(base, attempt)
        try:
            home.rename(name.encode())
            return name
        except FileExistsError:
            attempt += 1


def snapshots(agent: Agent, _request: Dict[str, Any]) -> Dict[str, Any]:
    """The operation `snapshots`: all of them, the oldest first, each with until when it has to be kept."""
    return {"method": method(agent) or None, "items": _items(agent.tree.hidden_fd)}


def _items(hidden_fd: int) -> List[Dict[str, Any]]:
    found = homes.records(hidden_fd, layout.SNAPSHOTS)
    until = _until(found)
    return [{**r, "until_ns": until.get(str(r["name"]))} for r in found]


def past(root_fd: int, request: Dict[str, Any], *, gated: bool) -> Work:
    """The operation `past`, which needs no hello: of a root that was promoted as well. ``do``: "list" gives ``items``; "remove"
    one by ``name``, with ``force`` as below. The descriptor is closed. Raises AgentError, OSError.
    """
    try:
        hidden_fd = os.open(layout.HIDDEN, _DIR, dir_fd=root_fd)
    finally:
        os.close(root_fd)
    try:
        if request.get("do") == "remove":
            return (yield from _removed(hidden_fd, request, gated=gated))
        return {"items": _items(hidden_fd)}
    finally:
        os.close(hidden_fd)


def known(root_fd: int) -> List[Dict[str, Any]]:
    """What is known of all of a root, the oldest first."""
    hidden_fd = os.open(layout.HIDDEN, _DIR, dir_fd=root_fd)
    try:
        return homes.records(hidden_fd, layout.SNAPSHOTS)
    finally:
        os.close(hidden_fd)


def check_name(root_fd: int, name: str) -> None:
    """Raises AgentError when a root has no snapshot of that name."""
    with reading(root_fd, name):
        pass


@contextmanager
def reading(root_fd: int, name: str) -> Iterator[int]:
    """A descriptor of a snapshot's own root; meanwhile nobody removes it. Raises AgentError when there is none of that name."""
    with ExitStack() as held:
        try:
            if not _NAME.fullmatch(name):
                raise FileNotFoundError
            hidden_fd = os.open(layout.HIDDEN, _DIR, dir_fd=root_fd)
            held.callback(os.close, hidden_fd)
            home_fd = held.enter_context(homes.reading(hidden_fd, layout.SNAPSHOTS, name.encode()))
            fd = os.open(copies.ROOT, _DIR, dir_fd=home_fd)
        except FileNotFoundError:
            raise AgentError("not-found", "there is no snapshot {}".format(name[:40])) from None
        held.callback(os.close, fd)
        yield fd


def record_of(agent: Agent, name: str) -> Dict[str, Any]:
    """What is known of a snapshot."""
    return next((record for record in known(agent.tree.root_fd) if record["name"] == name), {})


def snapshot_remove(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """The operation `snapshot_remove`. ``force``: also one that has to be kept; never by a key of the session's own."""
    return agent.under_way.go_on(
        "snapshot_remove", lambda: _removed(agent.tree.hidden_fd, request, gated=agent.gated)
    )


def _removed(hidden_fd: int, request: Dict[str, Any], *, gated: bool) -> Work:
    name = str(request["name"])
    found = {str(r["name"]): r for r in homes.records(hidden_fd, layout.SNAPSHOTS)}
    if not _NAME.fullmatch(name) or name not in found:
        raise AgentError("not-found", "there is no snapshot {}".format(name[:40]))
    until = _until(list(found.values())).get(name)
    if until is not None and until > time.time_ns() and not (request.get("force") and not gated):
        raise AgentError("kept", "snapshot {} has to be kept until {}".format(name, _clock(until)))
    try:
        yield from homes.remove(hidden_fd, layout.SNAPSHOTS, name.encode())
    except BlockingIOError:
        raise AgentError(
            "busy", "snapshot {} is being read, or removed, at the moment".format(name)
        ) from None
    return {}


def _thin(agent: Agent, keep: Retention) -> Any:
    """Remove those that neither their own rule nor today's keeps, but never the last. Gives their names."""
    found = [r for r in homes.records(agent.tree.hidden_fd, layout.SNAPSHOTS) if "taken_ns" in r][:-1]
    own = _until(found)
    today = keep.until(int(r["taken_ns"]) for r in found)
    now = time.time_ns()
    removed: List[str] = []
    for record in found:
        name = str(record["name"])
        if (own[name] or 0) > now or (today[int(record["taken_ns"])] or 0) > now:
            continue
        try:
            yield from homes.remove(agent.tree.hidden_fd, layout.SNAPSHOTS, name.encode())
        except (BlockingIOError, FileNotFoundError):
            continue  # somebody reads it, or is at it
        removed.append(name)
    return removed


def _until(found: List[Dict[str, Any]]) -> Dict[str, Optional[int]]:
    """Until when each has to be kept by what its own record says; None: it need not be."""
    series = [int(r["taken_ns"]) for r in found if "taken_ns" in r]
    rules = {str(r.get("keep", DEFAULT)) for r in found}
    by_rule = {rule: Retention.parse(rule).until(series) for rule in rules}
    return {
        str(r["name"]): by_rule[str(r.get("keep", DEFAULT))][int(r["taken_ns"])]
        for r in found
        if "taken_ns" in r
    }


def _retention(text: Any) -> Retention:
    try:
        return Retention.parse(text)
    except ValueError as error:
        raise AgentError("protocol", str(error)) from None


def _mark(text: str) -> Dict[str, Any]:
    """The mark as it is told (docs/formats.md)."""
    mark = json.loads(text)
    if not isinstance(mark, dict) or not isinstance(mark.get("stime_ns"), int):
        raise AgentError("protocol", "not a mark")
    return {name: mark.get(name) for name in ("stime_ns", "front", "epoch")}


def _clock(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_ns // 10**9))
