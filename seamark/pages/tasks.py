"""Tasks as people read them, and those of one session among all that Flower knows."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flower.utils.tasks import search_tasks

from seamark.progress.text import shown

if TYPE_CHECKING:
    from flower.events import Events

_WORK = "tasks."  # how the names of tasks begin that do a session's work
_LONGEST = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task. ``started``: seconds since the epoch, ``runtime``: seconds; None: not yet."""

    uuid: str
    name: str
    batch: int | None
    about: str
    state: str
    result: str
    started: float | None
    runtime: float | None


def shown_task(task: Any) -> Any:
    """A task with what it is about, and what it returned, in words: Flower shows that of tasks."""
    task.kwargs, task.result = about(task.kwargs), _text(task.result)
    return task


def about(kwargs: str | None) -> str:
    """``{'session': 'photos', 'batch': 3, 'unit': 'E:7:0'}`` as ``photos, batch 3, E:7:0``; other text as it is."""
    said = _said(kwargs)
    if not said:
        return kwargs or ""
    words = [str(said["session"])]
    words += [f"batch {said['batch']}"] if "batch" in said else []
    return ", ".join(words + [str(said[key]) for key in ("unit", "about") if said.get(key)])


def _said(kwargs: str | None) -> dict[str, Any]:
    """What canvas.py says of a task; empty for what it did not write."""
    try:
        said = ast.literal_eval(kwargs or "")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return said if isinstance(said, dict) and "session" in said else {}


def tasks_url(session: str, batch: int | None = None) -> str:
    """Flower's list of the tasks of a session, or of one of its batches.

    Flower's page takes a name only, and puts it before what it searches for; what follows is searched for as well.
    """
    search = f"{_WORK} kwargs:session={session}" + ("" if batch is None else f" kwargs:batch={batch}")
    return f"/tasks?name={quote(search, safe='')}"


def recent(events: Events, session: str, most: int) -> list[TaskRow]:
    """The tasks of a session that began last, the newest first."""
    found = search_tasks(
        events,
        search=f"name:{_WORK} kwargs:session={session}",
        sort_by="received",
        descending=True,
        limit=most,
    )
    kept = events.state.tasks.data  # a look at one must not count as its use
    return [_row(kept[uuid]) for uuid in found.task_ids if uuid in kept]


def _row(task: Any) -> TaskRow:
    said = _said(task.kwargs)
    words = [str(said[key]) for key in ("unit", "about") if said.get(key)]
    return TaskRow(
        uuid=task.uuid, name=(task.name or "?").rpartition(".")[2], batch=said.get("batch"),
        about=_cut(", ".join(words)), state=task.state, result=_cut(_text(task.result)),
        started=task.started, runtime=task.runtime,
    )  # fmt: skip


def _text(result: Any) -> str:
    """What a task returned, of which its event has the repr()."""
    try:
        said = ast.literal_eval(result or "")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return str(result or "")
    return said if isinstance(said, str) else str(result)


def _cut(text: str) -> str:
    text = shown(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
