"""One way to read every changelog: ours and Gluster's, as the same records."""

from __future__ import annotations

import os

from replication.changelog import glusterlog
from replication.changelog.glusterlog import parse_gluster
from replication.changelog.record import Segment
from replication.changelog.segment import parse_segment


def read_segment(path: str | os.PathLike[str]) -> Segment:
    """Read a changelog file, whichever kind it is.

    Raises OSError, and SegmentDamaged (for Gluster's also while the records are iterated). A torn
    tail of one of ours, as a killed agent leaves it, is left out; ``info.torn_bytes`` says how long it was.
    """
    with open(path, "rb") as file:
        data = file.read()
    if data.startswith(glusterlog.MAGIC):
        return parse_gluster(os.fspath(path), data)
    return parse_segment(os.fspath(path), data)
