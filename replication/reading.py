"""Reading a progress database that others write, and that need not be there: for commands, metrics and pages."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_Answer = TypeVar("_Answer")


def ask(path: Path, question: Callable[[sqlite3.Connection], _Answer], otherwise: _Answer) -> _Answer:
    """What ``question`` finds in it; ``otherwise`` where there is no such thing, or it cannot be read."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            return question(db)
    except sqlite3.Error:
        return otherwise
