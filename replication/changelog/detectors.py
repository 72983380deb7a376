"""Which recorder a volume gets: the best that this process may use there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from replication.changelog.brickrecorder import BrickRecorder
from replication.changelog.filesystem import FilesystemRecorder
from replication.changelog.gather import Gather
from replication.changelog.recorder import Recorder, RecorderUnavailable
from replication.changelog.store import MAX_BYTES
from replication.changelog.watches import DirectoryRecorder

log = logging.getLogger("replication.agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """``root`` is the volume, ``directory`` the changelog's. ``detector``: auto (or fanotify), filesystem or
    directories. auto takes one mark on the file system where that is possible, else one on each directory.
    A segment is closed ``close_after_ms`` after its first event (a third of that, where the one before was closed
    as long ago: what comes after a quiet time waits for nothing else), or with ``max_records`` in it.
    ``consumers`` are those for whom segments are kept until each has applied them; while there are none, whoever says
    that he has. ``needs``: what they need by now of ``close_after_ms`` and ``max_bytes``; None: what was said.
    ``gluster``: the Gluster volume that ``root`` is a mount of; then its bricks record. ``nodes``: what starts the program on
    another node that tells what its bricks record; None: only the bricks of this node are followed.
    """

    root: str
    directory: str
    detector: str = "auto"
    close_after_ms: int = 150
    tick_s: float = 5.0
    max_records: int = 50_000
    max_bytes: int = MAX_BYTES
    unlimited_queue: bool = True
    consumers: Callable[[], Collection[str]] = tuple
    needs: Callable[[], tuple[int, int] | None] = lambda: None
    gluster: str = ""
    nodes: Callable[[str], list[str]] | None = None


def open_recorder(config: AgentConfig, gather: Gather, on_gap: Callable[[str], None]) -> Recorder:
    """The best recorder that this process may use here. Raises RecorderUnavailable."""
    if config.gluster:
        kept = Path(config.directory) / "bricks.json"
        return BrickRecorder(config.gluster, config.root, kept, gather, on_gap, config.nodes)
    if config.detector != "directories":
        try:
            return FilesystemRecorder(config.root, gather, on_gap, unlimited=config.unlimited_queue)
        except RecorderUnavailable as error:
            if config.detector == "filesystem":
                raise
            log.info("a mark on each directory instead: %s", error)
    return DirectoryRecorder(config.root, gather, on_gap, unlimited=config.unlimited_queue)
