"""What a message may say: the arguments of each task are checked, here, before anything is done with them.

A message comes from the broker, and whoever can write there can put anything into one. What is refused is a line in the
log, and the end of that message: neither an error, which a chord would fail by, nor tried again.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import celery

from replication.errors import SeamarkError
from replication.session import NAME
from tasks import signing
from tasks.canvas import ENGINES
from tasks.refusals import refuse, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MOST = 2**63 - 1  # what SQLite can hold
_TEXT = 10_000
_RUN = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Names of units (tasks/canvas.py). Those of a crawl grow with each step down.
_ENTRIES = re.compile(r"E:[0-9]{1,19}:[0-9]{1,19}")
_COMPARISON = re.compile(r"[0-9]{1,19}")
_UNITS = {
    "tasks.entry.sync_entries": _ENTRIES,
    "tasks.metadata.sync_metadata": _ENTRIES,
    "tasks.crawl.crawl_subtree": re.compile(r"C:[0-9.]{1,20000}"),
    "tasks.verify.compare": _COMPARISON,
    "tasks.verify.mend": _COMPARISON,
    **{f"tasks.data.sync_by_{e}": re.compile(rf"[DRN]:{e}:[A-Za-z0-9.:]{{1,20000}}") for e in ENGINES},
}


def _is_number(value: Any, _task: str) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_text(value: Any, _task: str) -> bool:
    return type(value) is str and len(value) <= _TEXT


def _is_truth(value: Any, _task: str) -> bool:
    return type(value) is bool


def _is_run(value: Any, _task: str) -> bool:
    return type(value) is str and _RUN.fullmatch(value) is not None


def _is_unit(value: Any, task: str) -> bool:
    pattern = _UNITS.get(task)
    return type(value) is str and pattern is not None and pattern.fullmatch(value) is not None


def _is_session(value: Any, _task: str) -> bool:
    return type(value) is str and NAME.fullmatch(value) is not None


# Every argument of every task: one that is not here is refused.
_ARGUMENTS: dict[str, Callable[[Any, str], bool]] = {
    "session": _is_session,
    "epoch": _is_number,
    "batch": _is_number,
    "unit": _is_unit,
    "run": _is_run,
    "why": _is_text,
    "anew": _is_truth,
    "at_once": _is_truth,
}


def _wrong(task: str, said: Mapping[str, Any]) -> str | None:
    """Why these arguments will not do; None: they are as ours are."""
    for name, value in said.items():
        check = _ARGUMENTS.get(name)
        if check is None or not check(value, task):
            return f"{shown(name)} is {shown(repr(value))}"
    return _unknown(said["session"])


def _unknown(session: str) -> str | None:
    """Why this host has nothing to do with a session."""
    from tasks.context import context  # which has the application, whose tasks these are

    try:
        context(session)
    except SeamarkError as error:
        return shown(error.message)
    return None


class Task(celery.Task):
    """The base of all tasks, Celery's own too: those take other arguments, and are refused."""

    abstract = True

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        if (why := signing.moved(self.app, self.name, self.request)) is not None:
            return refuse(f"{self.name}: {why}")
        try:
            said = inspect.signature(self.run).bind(*args, **kwargs).arguments
        except TypeError as error:
            return refuse(f"{self.name}: {shown(error)}")
        if "session" not in said:
            return refuse(f"{self.name} is no task of a session")
        if (why := _wrong(self.name, said)) is not None:
            return refuse(f"{self.name}: {why}")
        return self.run(*args, **kwargs)
