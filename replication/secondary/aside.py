"""Files written aside, a portion at a time, outside of any transaction.

In this thread: one of its own for the writing gained no time where another core was idle (most is spent in the
file system, whose journal takes turns), and cost four tenths more of the processor. On a volume most is spent waiting:
there it is several (crowd.py).
"""

from __future__ import annotations

from typing import Generator, List, Tuple

from replication.secondary.agent import Agent
from replication.secondary.receiver import Errors, Files, close_all, stage
from replication.secondary.staged import Staged

Portion = Tuple[List[Staged], Errors]

AT_ONCE = 1024  # files of one portion: so many are open, and placed by one transaction


def portions(agent: Agent, files: Files) -> Generator[Portion, None, None]:
    """Files that are written, with what went wrong with others.

    What nobody placed vanishes when the next portion is asked for, or this is closed.
    """
    for start in range(0, len(files), AT_ONCE):
        staged: List[Staged] = []
        errors: Errors = []
        try:
            stage(agent, files[start : start + AT_ONCE], staged, errors)
            yield staged, errors
        finally:
            close_all(agent, staged)
