"""The state of one agent process on one root, and its transactions.

Every change happens inside ``transaction()``: the lock file (so that agents of one root take turns), an
SQLite write transaction, the journal, and at the end the times of the directories that were touched.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Callable, Dict, Iterator, List, Sequence, Set, Tuple

from replication.secondary import faults, layout
from replication.secondary.filters import EVERYTHING
from replication.secondary.gfids import Gfids
from replication.secondary.index import Index, Key, Row
from replication.secondary.journal import Journal
from replication.secondary.metadata import Powers
from replication.secondary.mounting import life, volume_of
from replication.secondary.namespace import Namespace
from replication.secondary.protocol import AgentError
from replication.secondary.steps import UnderWay
from replication.secondary.syscalls import list_directory
from replication.secondary.tree import Tree


class Agent:
    """An open secondary. ``epoch`` is that of this connection; 0 until hello."""

    def __init__(self, root_fd: int, index: Index, powers: Powers, staging: bytes) -> None:
        self.index = index
        self.powers = powers
        self.tree = Tree(root_fd, index)
        self.journal = Journal(self.tree.hidden_fd)
        self.epoch = 0
        self.gated = False  # reached by a key of the session's own, which may do less
        self.under_way = UnderWay()
        self.says_alive: Callable[[], None] = lambda: None  # for whoever waits for an answer that takes long
        self.view: Any = None  # views.View
        self.read_only = False
        self.leaves_others = (
            False  # while the index is made anew: what the primary does not have stays in its place
        )
        self.filters = EVERYTHING
        self.believes_ns = (
            0  # what did not change on the primary since then is here, says who replicated before
        )
        self.content_only = False  # what this connection says of a file is its content, and nothing else
        # Own staging directory: held by a lock, so that leftovers of dead processes can be told.
        self.staging_name = staging
        self.staging_fd = os.open(staging, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.tree.staging_fd)
        fcntl.flock(self.staging_fd, fcntl.LOCK_EX)
        self._staged = itertools.count(1)  # its next() is one step, also between threads
        self.volume = volume_of(os.fsencode(os.readlink("/proc/self/fd/{}".format(root_fd))))
        self._life = "" if self.volume is None else life(self.volume)
        self.gfids = None if self.volume is None else Gfids(self.volume, root_fd)
        index.keeps_inodes = self.gfids is not None
        self.namespace = Namespace(self.tree, powers, self.staging_fd, self.next_staging_name, self.gfids)
        self.tmpfile = True  # until the file system says that it has no O_TMPFILE
        self.parts: Dict[bytes, int] = {}  # listings in parts: directory -> the part that comes next
        self.transfers: Dict[bytes, Any] = {}  # gfid -> transfers.Transfer
        self.busy_with = b""  # what another connection was last seen to receive
        self.healed: Set[bytes] = set()  # directories made again; to be listed
        self.recent: Any = None  # verify.Recent, from the first comparison on
        self._lock_fd = os.open(
            layout.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.tree.hidden_fd
        )
        self.unit_locks: Dict[bytes, int] = {}  # what rsync or tar write to at the moment
        self.census = (
            float("-inf"),
            0,
        )  # when all objects were counted last, monotonic, and how many they were
        self.swept_s = float("-inf")  # when leftovers of transfers were last looked for, monotonic
        self._dirty_journal = False

    @property
    def rebuilding(self) -> bool:
        return self.index.meta.get("state") == "rebuilding"

    def next_staging_name(self) -> bytes:
        return b"%x" % next(self._staged)

    @contextmanager
    def transaction(self, check_epoch: bool = True) -> Iterator[None]:
        """Everything or nothing of what is inside, as far as the index goes; the journal mends the rest.

        Raises AgentError("stale-epoch") when a newer connection has taken over.
        """
        if self.read_only:
            raise AgentError("read-only", "this connection only looks")
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            self._recover()
            self.index.begin()
            self.tree.begin()
            self.namespace.begin()
            try:
                if check_epoch and self.index.meta.get("epoch", 0) != self.epoch:
                    raise AgentError("stale-epoch", "a newer epoch has taken over this secondary")
                yield
                self.namespace.forget_lost()
                self.tree.settle()
                faults.point("commit")
                self._refuse_after_outage()
                self.index.commit()
            except BaseException:
                self.index.rollback()
                self.tree.reset()
                self.index.read_meta()
                raise
            faults.point("committed")
            if self._dirty_journal:
                self.journal.clear()
                self._dirty_journal = False
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _refuse_after_outage(self) -> None:
        """Bricks keep the locks of their volume: where one was away meanwhile others may have been let in. Raises OSError."""
        if self.volume is not None and life(self.volume) != self._life:
            raise OSError(errno.ENOTCONN, "a part of the volume was away for a while")

    def goes_on(self) -> None:
        """Said now and then by whoever writes to a file that is here, for as long as it has that locked. Raises OSError."""
        self.says_alive()
        self._refuse_after_outage()

    def check_epoch(self) -> None:
        """For what is done outside of a transaction. Raises AgentError("stale-epoch")."""
        self.index.read_meta()
        if self.index.meta.get("epoch", 0) != self.epoch:
            raise AgentError("stale-epoch", "a newer epoch has taken over this secondary")

    def _recover(self) -> None:
        """Mend what a transaction has left that did not end, ours or a dead process's. The lock is held."""
        if not self.journal.filled():
            return
        from replication.secondary import recovery

        self.index.begin()
        self.tree.begin()
        try:
            recovery.replay(self, self.journal.read())
            self.tree.settle()
            self.index.commit()
        except BaseException:
            self.index.rollback()
            self.tree.reset()
            raise
        self.journal.clear()
        self._dirty_journal = False

    def announce(
        self, names: List[Tuple[Row, List[Key]]], data: List[List[Any]], inos: Sequence[int] = ()
    ) -> None:
        """Write to the journal where the next operations may leave objects.

        ``inos``: the inode numbers of what is to be at ``names``, where they are known already.
        """
        if not names and not data:
            return
        gfids = self._parent_gfids({key[0] for _, keys in names for key in keys})
        lines = []
        for (row, keys), ino in zip_longest(names, inos):
            places = [[gfids[p], os.fsdecode(n)] for p, n in dict.fromkeys(keys) if p in gfids]
            lines.append([row.gfid.hex(), row.mode, ino or row.ino, row.limbo, places])
        self._dirty_journal = True
        self.journal.write(lines, data)
        faults.point("journal")

    def _parent_gfids(self, ids: Set[int]) -> Dict[int, str]:
        # What is looked up is not kept: rows that a plan finds in tree.rows are those that it saves.
        rows = self.index.inodes_by_id(i for i in ids if i not in self.tree.rows)
        rows.update((i, self.tree.rows[i]) for i in ids if i in self.tree.rows)
        return {i: row.gfid.hex() for i, row in rows.items()}

    def close(self) -> None:
        """Leave nothing of this process behind."""
        self.under_way.end()
        if self.view is not None:
            from replication.secondary import views

            views.end(self)
        if self.gfids is not None and not self.read_only:
            self.gfids.close(self.staging_fd)  # a mount that ends so leaves nothing to doubt (mounting.py)
        try:
            for name in list_directory(self.staging_fd):
                os.unlink(name, dir_fd=self.staging_fd)
            os.rmdir(self.staging_name, dir_fd=self.tree.staging_fd)
        except OSError:
            pass
        self.tree.close()
        self.journal.close()
        self.index.close()
        os.close(self.staging_fd)
        os.close(self._lock_fd)
