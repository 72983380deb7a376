"""The loop: a frame in, an operation, a frame out, in order."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Any, BinaryIO, Callable, Dict, Optional, Union

from replication.secondary import (
    blocks,
    comparing,
    held,
    inplace,
    limbo,
    lookups,
    owner,
    promotion,
    seeding,
    snapshots,
    survey,
    transfers,
    verify,
    views,
    whole,
)
from replication.secondary.agent import Agent
from replication.secondary.inbox import Inbox
from replication.secondary.metadata_op import metadata
from replication.secondary.mounting import Mount
from replication.secondary.onlooker import Onlooker
from replication.secondary.protocol import LOG_LINE, AgentError, agent_error, frame
from replication.secondary.steps import UnderWay
from replication.secondary.tree import LostDirectory

Operation = Callable[[Agent, Dict[str, Any], bytes], Dict[str, Any]]

_LEVELS = ("debug", "info", "warning", "error")
_UNFORESEEN = ("protocol", "io")
_ASK_FIRST = ("hello", "sync", "mark")  # of a volume: whether it answers now
_HEALINGS = 1000  # lost directories mended for one request, before we say that somebody is at it


def _plain(operation: Callable[[Agent, Dict[str, Any]], Dict[str, Any]]) -> Operation:
    return lambda agent, request, _payload: operation(agent, request)


OPERATIONS: Dict[str, Operation] = {
    "observe": whole.observe,
    "metadata": _plain(metadata),
    "data": whole.data,
    "file_begin": _plain(transfers.file_begin),
    "file_data": transfers.file_data,
    "file_blocks": _plain(blocks.file_blocks),
    "file_end": _plain(transfers.file_end),
    "file_leave": _plain(transfers.file_leave),
    "compare": _plain(comparing.compare),
    "digests": _plain(whole.digests),
    "stage": _plain(inplace.stage),
    "commit": _plain(inplace.commit),
    "names": _plain(lookups.names),
    "dirty": _plain(lookups.dirty),
    "unlisted": _plain(lookups.unlisted),
    "wanted": _plain(lookups.wanted),
    "unlist": _plain(lookups.unlist),
    "whereabouts": _plain(lookups.whereabouts),
    "doubt": _plain(lookups.doubt),
    "stat": _plain(lookups.statistics),
    "check": _plain(lookups.check),
    "begin_crawl": _plain(lookups.begin_crawl),
    "end_crawl": _plain(lookups.end_crawl),
    "purge": _plain(limbo.purge),
    "held": _plain(held.held),
    "sync": _plain(lookups.sync),
    "mark": _plain(lookups.mark),
    "tell": _plain(lookups.tell),
    "snapshot": _plain(snapshots.snapshot),
    "snapshots": _plain(snapshots.snapshots),
    "snapshot_remove": _plain(snapshots.snapshot_remove),
    "view": _plain(views.view),
    "view_check": _plain(views.view_check),
    "view_state": _plain(views.view_state),
    "view_keep": _plain(views.view_keep),
    "view_drop": _plain(views.view_drop),
    "views": _plain(views.views),
    "views_discard": _plain(views.views_discard),
    "inspect": _plain(verify.inspect),
    "pieces": _plain(verify.pieces),
    "hashing": _plain(verify.hashing),
    "mend": _plain(verify.mend),
}


_ALIVE_S = 1.0


class Server:
    """One connection."""

    def __init__(
        self, root: bytes, reader: BinaryIO, writer: BinaryIO, limited: bool = False, volume: Optional[Mount] = None
    ) -> None:  # fmt: skip
        """``limited``: of a key that may serve its session and nothing else; ``volume``: that the root is on."""
        self._limited = limited
        self._volume = volume
        self._root = root
        self._inbox = Inbox(reader)
        self._writer = writer
        self._agent: Union[Agent, Onlooker, None] = None
        self._ungreeted = UnderWay()
        self._seeding: Optional[seeding.Seeding] = None
        self._level = _LEVELS.index("error")
        self._said_s = time.monotonic()

    def serve(self) -> int:
        """Until the stream ends. Returns the exit code. Ends this process where the volume of the root is away."""
        try:
            while True:
                self._go_on_meanwhile()
                try:
                    got = self._inbox.next()
                except AgentError as error:
                    self._send({"id": None, "ok": False, "error": error.code, "message": error.message})
                    return 1
                if got is None:
                    return 0
                began = time.monotonic()
                if self._volume is not None:
                    self._volume.must_answer(now=got[0].get("op") in _ASK_FIRST)
                answer = self._answer(*got)
                if self._volume is not None and (not answer["ok"] or answer.get("errors")):
                    self._volume.must_answer()  # what failed for that comes again when it is there
                self._note(got[0].get("op"), answer, time.monotonic() - began)
                self._send(answer)
        except BrokenPipeError:
            return 0
        finally:
            if self._agent is not None:
                self._agent.close()
            self._ungreeted.end()
            if self._seeding is not None:
                self._seeding.close()
            if self._volume is not None:
                self._volume.leave()

    def _go_on_meanwhile(self) -> None:
        """With what takes long, until somebody asks for something."""
        self._ungreeted.go_on_until(self._inbox.has_come)
        if isinstance(self._agent, Agent):
            self._agent.under_way.go_on_until(self._inbox.has_come)

    def _note(self, op: Any, answer: Dict[str, Any], took: float) -> None:
        astray = answer.get("counts", {}).get("astray")
        if astray:
            self._say(
                "warning",
                "the index had lost what stands at {} names: it was displaced, and comes again".format(
                    astray
                ),
            )
        if not answer["ok"]:
            level = "warning" if answer["error"] in _UNFORESEEN else "debug"
            self._say(level, "{}: {} [{}]".format(op, answer["message"], answer["error"]))
        elif self._level == 0:
            self._say("debug", "{} took {:.1f} ms".format(op, took * 1000))

    def _say(self, level: str, text: str) -> None:
        """A line for the log of the primary's side, which takes it from standard error."""
        if _LEVELS.index(level) >= self._level:
            line = "{}{} {}\n".format(LOG_LINE, level, " ".join(text.split()))
            try:
                os.write(2, line.encode("utf-8", "backslashreplace"))
            except OSError:
                pass

    def _send(self, header: Dict[str, Any]) -> None:
        data = memoryview(frame(header))
        while data:
            data = data[self._writer.write(data) :]

    def _say_alive(self) -> None:
        """In the middle of a request. That nobody listens any more shows when it is answered."""
        now = time.monotonic()
        if now - self._said_s > _ALIVE_S:
            self._said_s = now
            try:
                self._send({"alive": True})
            except BrokenPipeError:
                pass

    def _answer(self, request: Dict[str, Any], payload: bytes) -> Dict[str, Any]:
        number = request.get("id")
        try:
            answer = self._do(request, payload)
        except Exception as error:
            if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error):
                if isinstance(self._agent, Agent):
                    owner.mark_damaged(self._agent)
            if os.environ.get("SEAMARK_TRACE"):
                import traceback

                traceback.print_exc()
            known = agent_error(error)
            answer = {"id": number, "ok": False, "error": known.code, "message": known.message}
            if known.path is not None:
                answer["path"] = known.path
            return answer
        answer["id"] = number
        answer["ok"] = True
        return answer

    def _do(self, request: Dict[str, Any], payload: bytes) -> Dict[str, Any]:
        op = request.get("op")
        if op == "ping":
            return {"t": time.time_ns()}
        if op == "survey":
            return survey.survey(self._root, request)
        if op == "belongs":
            return owner.belongs(self._root)
        if op in ("promotion", "past"):
            self._ungreeted.end(unless=op)
        if op == "promotion":
            return self._ungreeted.go_on(
                op, lambda: promotion.promotion(self._root, request, gated=self._limited)
            )
        if op == "past":
            return self._ungreeted.go_on(op, lambda: promotion.past(self._root, request, gated=self._limited))
        if isinstance(op, str) and op.startswith("seed_"):
            return self._seed(op, request)
        if op == "hello":
            before, self._agent = self._agent, None
            self._agent, answer = owner.hello(self._root, request, before)
            if isinstance(self._agent, Agent):
                self._agent.says_alive = self._say_alive
            self._level = _LEVELS.index(str(request.get("log", "error")))
            self._say("debug", "serves {} under epoch {}".format(os.fsdecode(self._root), request["epoch"]))
            return answer
        operation = OPERATIONS.get(op) if isinstance(op, str) else None
        if operation is None:
            raise AgentError("protocol", "no such operation: {}".format(str(op)[:100]))
        agent = self._agent
        if agent is None:
            raise AgentError("protocol", "hello comes first; or there is nothing here yet to look at")
        if isinstance(agent, Onlooker):
            return agent.do(op, request)
        agent.gated = self._limited
        agent.under_way.end(unless=str(op))
        for _ in range(_HEALINGS):
            try:
                return operation(agent, request, payload)
            except LostDirectory as lost:
                limbo.heal(agent, lost.inode)
        raise AgentError("io", "directories of the secondary keep disappearing")

    def _seed(self, op: str, request: Dict[str, Any]) -> Dict[str, Any]:
        if op == "seed_begin":
            if self._seeding is not None:
                self._seeding.close()
            self._seeding = None
            self._seeding = seeding.Seeding(self._root, request, self._limited)
            return {}
        step = seeding.STEPS.get(op)
        if step is None or self._seeding is None:
            raise AgentError(
                "protocol", "seed_begin comes first, and then one of: " + ", ".join(seeding.STEPS)
            )
        return step(self._seeding, request)
