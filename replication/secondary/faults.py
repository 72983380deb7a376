"""Points at which tests kill the agent: SEAMARK_FAULT=<point>:<count> kills it at the count-th passage.

Points: journal (written, nothing done yet), step (before each namespace step), linked (a file has another link,
and its old name is still to be taken), over (before what stands at a name is replaced), lifted (a shadow was
removed), place (before each file is placed), commit (all done, index not committed), committed (journal not
cleared yet), staged (content written, before the transaction), purge (between the removal of two objects), mark
(before the mark is written to the root); of a promotion: torn (others are still at work), back (before each object comes
out of limbo), copied (before a copy takes a shadow's place); of a seeding: seeded (the index is there), aside (before each object is displaced),
unowned (before the owner is written).
"""

from __future__ import annotations

import os
import signal

_point, _, _count = os.environ.get("SEAMARK_FAULT", "").partition(":")
_left = int(_count or 0)


def point(name: str) -> None:
    global _left
    if name == _point:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
