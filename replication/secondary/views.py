"""Views: writable copies of the secondary, complete in themselves, in which a failover is tried without one.

A view belongs to the connection that made it and goes with it, also when that is killed (homes.py); or it is kept until
somebody discards it. The root, its index and whoever replicates to it are not touched.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Iterator, List

from replication.secondary import copies, homes, layout, overlay, snapshots, sql
from replication.secondary.agent import Agent
from replication.secondary.checking import Check
from replication.secondary.clones import can_clone
from replication.secondary.protocol import AgentError
from replication.secondary.steps import Work
from replication.secondary.syscalls import spare_bytes

OVERLAY = "overlay"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WAIT_S = 1.0
_NONE = (
    "no view of it can be made here: its file system should be btrfs, or XFS made with reflink=1; overlayfs needs root, and a "
    "root that lies in a directory of the same file system; --method copy copies everything"
)


class View:
    """One that is there, of the secondary or of a snapshot. ``frozen``: later changes of the root do not show in it."""

    def __init__(self, agent: Agent, source_fd: int, method: str, *, stays: bool) -> None:
        self._source_fd = source_fd
        self._agent = agent if source_fd == agent.tree.root_fd else None
        self._stays = stays
        self.method = method
        self.frozen = method != OVERLAY
        self.home = homes.Home(agent.tree.hidden_fd, layout.VIEWS)
        self.path = b""
        self.check: Any = None

    def make(self) -> Work:
        """Make it, complete in itself; what it holds."""
        with copies.Source(self._source_fd, self._agent) as source:
            if self.method == OVERLAY:
                with source.between_transactions():
                    self.path = overlay.mount(source.root_fd, self.home.fd, stays=self._stays)
                    return (yield from self._complete())
            yield from copies.copy(source, self.home.fd, self.method)
        self.path = os.fsencode(os.readlink("/proc/self/fd/{}".format(self.home.fd))) + b"/" + copies.ROOT
        return (yield from self._complete())

    def _complete(self) -> Work:
        made = yield from copies.make_complete(os.open(self.path, _DIR))
        found = os.fstat(self._source_fd)
        os.utime(self.path, ns=(found.st_atime_ns, found.st_mtime_ns))
        return made

    def keep(self, record: Dict[str, Any]) -> str:
        """From now on it stays; its name."""
        self.home.write(record)
        name = b"kept.%d" % time.time_ns()
        self.home.rename(name)
        if self.method != OVERLAY:
            self.path = os.path.dirname(os.path.dirname(self.path)) + b"/" + name + b"/" + copies.ROOT
        return name.decode()

    def drop(self) -> Iterator[int]:
        """Nothing of it is left, nor of its check."""
        if self.check is not None:
            self.check.end()
        yield from self.home.throw_away()
        self.close()

    def close(self) -> None:
        """It is somebody else's now, or nobody's."""
        self.home.close()


def methods(agent: Agent, source_fd: int) -> List[str]:
    """How views can be made here, the best first. A whole copy, which takes time and room, can be made anywhere."""
    best = copies.method_here(source_fd, agent.staging_fd)
    found = [best] if best else []
    if best == copies.BTRFS and can_clone(agent.staging_fd):
        found.append(copies.REFLINK)
    if source_fd == agent.tree.root_fd and overlay.possible(source_fd):
        found.append(OVERLAY)
    return [*found, copies.COPY]


def view(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """The operation `view`: make one. ``method``: as `methods` has it, or auto; ``stays``: it is to be kept; ``snapshot``:
    of that one, and not of the secondary as it is now.
    """
    return agent.under_way.go_on("view", lambda: _make(agent, request))


def _make(agent: Agent, request: Dict[str, Any]) -> Work:
    if agent.view is not None:
        raise AgentError("protocol", "there is a view already")
    yield from homes.sweep(agent.tree.hidden_fd)
    name = request.get("snapshot")
    if name is None:
        return (yield from _make_of(agent, agent.tree.root_fd, request))
    with snapshots.reading(agent.tree.root_fd, str(name)) as source_fd:
        return (yield from _make_of(agent, source_fd, request))


def _make_of(agent: Agent, source_fd: int, request: Dict[str, Any]) -> Work:
    began = time.monotonic()
    method = _method(agent, source_fd, str(request["method"]))
    found = View(agent, source_fd, method, stays=bool(request.get("stays")))
    try:
        made = yield from found.make()
    except BaseException:
        for _ in found.drop():
            pass
        raise
    agent.view = found
    return {
        "path": os.fsdecode(found.path), "method": found.method, "frozen": found.frozen, "made_ns": time.time_ns(),
        "took_s": round(time.monotonic() - began, 3), **made,
    }  # fmt: skip


def _method(agent: Agent, source_fd: int, wanted: str) -> str:
    can = methods(agent, source_fd)
    if wanted == "auto":
        if can == [copies.COPY]:
            raise AgentError("unsupported", _NONE)
        return can[0]
    if wanted not in can:
        raise AgentError(
            "unsupported",
            "a view by {} cannot be made here; possible: {}".format(wanted[:20], ", ".join(can)),
        )
    if wanted == copies.COPY:
        size = agent.index.db.execute(sql.STATISTICS).fetchone()[5]
        spare = spare_bytes(agent.tree.root_fd)
        if size > spare:
            raise AgentError("no-space", "a copy needs up to {} bytes, {} are free".format(size, spare))
    return wanted


def view_check(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Begin to run a command in the view; never by a key of the session's own, which runs no commands."""
    found = _of(agent)
    if agent.gated:
        raise AgentError("permission", "the session's own key (push-pem) runs no commands here")
    if found.check is not None:
        raise AgentError("protocol", "a check runs already")
    environment = {
        "SEAMARK_DRILL_PATH": os.fsdecode(found.path),
        "SEAMARK_DRILL_MARK": str(request.get("mark", "")),
    }
    found.check = Check(str(request["command"]), found.path, environment, float(request["timeout_s"]))
    return {}


def view_state(agent: Agent, _request: Dict[str, Any]) -> Dict[str, Any]:
    """How far the check is; waits a moment for its end."""
    found = _of(agent)
    if found.check is None:
        raise AgentError("protocol", "no check runs")
    state: Dict[str, Any] = found.check.state(_WAIT_S)
    return state


def view_keep(agent: Agent, request: Dict[str, Any]) -> Dict[str, Any]:
    """Leave the view where it is, for people, until it is discarded."""
    found = _of(agent)
    name = found.keep(
        {"made_ns": time.time_ns(), "method": found.method, "why": str(request.get("why", ""))[:200]}
    )
    agent.view = None
    found.close()
    return {"name": name, "path": os.fsdecode(found.path)}


def view_drop(agent: Agent, _request: Dict[str, Any]) -> Dict[str, Any]:
    """Throw the view away."""
    return agent.under_way.go_on("view_drop", lambda: _drop(agent))


def _drop(agent: Agent) -> Work:
    found, agent.view = _of(agent), None
    yield from found.drop()
    return {}


def views_discard(agent: Agent, _request: Dict[str, Any]) -> Dict[str, Any]:
    """Throw away all views that were kept, and what killed processes have left."""
    return agent.under_way.go_on("views_discard", lambda: _discard(agent))


def _discard(agent: Agent) -> Work:
    yield from homes.sweep(agent.tree.hidden_fd)
    names = [str(record["name"]) for record in homes.records(agent.tree.hidden_fd, layout.VIEWS)]
    for name in names:
        yield from homes.remove(agent.tree.hidden_fd, layout.VIEWS, name.encode())
    return {"discarded": names}


def views(agent: Agent, _request: Dict[str, Any]) -> Dict[str, Any]:
    """How views can be made here, and which are kept."""
    return {
        "methods": methods(agent, agent.tree.root_fd),
        "kept": homes.records(agent.tree.hidden_fd, layout.VIEWS),
    }


def _of(agent: Agent) -> View:
    found = agent.view
    if not isinstance(found, View):
        raise AgentError("protocol", "there is no view")
    return found


def end(agent: Agent) -> None:
    """The connection ends: its view goes as well. What cannot be removed now is swept later."""
    if isinstance(agent.view, View):
        found, agent.view = agent.view, None
        try:
            for _ in found.drop():
                pass
        except OSError:
            pass
