"""A dry run's view of a secondary: it answers from the index, and touches nothing at all."""

from __future__ import annotations

import os
import sqlite3
from typing import Any, Dict, Optional, Tuple

from replication.secondary import layout, sql, whole
from replication.secondary.index import Index
from replication.secondary.protocol import AgentError
from replication.secondary.untouched import Changed, NotClosed, Untouched


class Onlooker:
    """In the place of an Agent where a connection is dry."""

    read_only = True

    def __init__(self, untouched: Untouched) -> None:
        self._untouched = untouched
        self.index = Index.looking(untouched.db)

    @property
    def rebuilding(self) -> bool:
        return self.index.meta.get("state") == "rebuilding"

    def do(self, op: Any, request: Dict[str, Any]) -> Dict[str, Any]:
        """The one operation that a dry run has. Raises AgentError, sqlite3.Error."""
        if op != "digests":
            raise AgentError("read-only", "this connection only looks")
        try:
            answer = whole.digests(self, request)
        except sqlite3.DatabaseError:
            self._check()  # a torn read is no damage
            raise
        self._check()
        return answer

    def _check(self) -> None:
        try:
            self._untouched.check()
        except Changed:
            raise AgentError("busy", "a run of this session began meanwhile: look again") from None

    def close(self) -> None:
        self.index.close()


def look(
    root_fd: int, owner: Optional[Dict[str, Any]], request: Dict[str, Any]
) -> Tuple[Optional[Onlooker], Dict[str, Any]]:
    """What a dry `hello` gives beside the rest. Without an Onlooker everything differs from the primary.

    Raises AgentError.
    """
    fs = {"writable": not os.fstatvfs(root_fd).f_flag & os.ST_RDONLY}
    if owner is None:
        return None, {"index": "new", "entries": 0, "fs": fs}
    lost = {"index": "lost", "entries": 0, "fs": fs}
    if owner.get("volume") != request["volume"]:
        if not request.get("adopt"):
            raise AgentError("owned", "this is a copy of another volume; adopt it to go on with this one")
        return None, lost
    hidden = b"/proc/self/fd/%d/%s/" % (root_fd, layout.HIDDEN)
    if os.path.lexists(hidden + layout.DAMAGED):
        return None, lost
    try:
        onlooker = Onlooker(Untouched(hidden + layout.INDEX))
        entries = onlooker.index.db.execute(sql.COUNT_ENTRIES).fetchone()[0]
    except NotClosed:
        raise AgentError(
            "io",
            "its index was not closed in order, and cannot be read without a trace: the next run mends it",
        ) from None
    except FileNotFoundError:
        return None, lost
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "file" not in str(error):
            raise
        return None, lost
    if onlooker.index.meta.get("format") != sql.FORMAT:
        return None, lost
    state = "rebuilding" if onlooker.rebuilding else "ok" if entries else "new"
    return onlooker, {"index": state, "entries": entries, "fs": fs}
