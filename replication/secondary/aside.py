"""Files written aside, a portion at a time, outside of any transaction.

In this thread: one of its own for the writing gained no time where another core was idle (most is spent in the
file system, whose journal takes turns), and cost four tenths more of the processor.
"""

from __future__ import annotations

from typing import Generator, List, Sequence, Tuple

from replication.secondary.agent import Agent
from replication.secondary.metadata import Item
from replication.secondary.receiver import Errors, Staged, stage_one

Files = Sequence[Tuple[Item, memoryview]]
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
            for item, piece in files[start : start + AT_ONCE]:
                stage_one(agent, item, piece, staged, errors)
            yield staged, errors
        finally:
            for file in staged:
                file.close()
