"""The recorder without privileges, or where a file system cannot be marked: a mark on each directory.

A directory is marked first and looked at then, so nothing falls between; one that is new to us is recorded
as to be listed. Paths are kept here, since the kernel does not resolve handles for everybody: after renames
of directories they are put right by looking, never by believing the order of events.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from replication.changelog import fanotify
from replication.changelog.fanotify import ATTRIB, CREATE, DELETE, EVENT_ON_CHILD, ONDIR, Q_OVERFLOW, RENAME
from replication.changelog.filesystem import KIND_EVENTS, KINDS, MASK, READ_SIZE, D, E, M
from replication.changelog.gather import Gather, Node, Tree, record_object
from replication.changelog.memory import Modified, RootState
from replication.changelog.recorder import OWN, RecorderUnavailable
from replication.volume.handle import file_handle, open_beneath, stat_at
from replication.volume.identity import ROOT_GFID, gfid_from

log = logging.getLogger(__name__)

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EXDEV}
_MAX_TRIES = 8
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(slots=True)
class _Doubt:
    """Something to look at once the queue is empty: a name that may be a directory, or (b"") a lost one."""

    node: Node
    name: bytes
    tries: int = 0


class DirectoryRecorder:
    """Records a volume through marks on each of its directories.

    ``on_gap(reason)`` is called where something was lost. Raises RecorderUnavailable, from ``drain`` too:
    there can be more directories than marks (fs.fanotify.max_user_marks).
    """

    mode = "directories"
    uneasy = False

    def __init__(
        self, root: str, gather: Gather, on_gap: Callable[[str], None], *, unlimited: bool = True
    ) -> None:
        self.events = self.overflows = 0
        self._gather = gather
        self._on_gap = on_gap
        self._doubts: list[_Doubt] = []
        self._modified = Modified()
        self._unnamed: set[bytes] = set()  # what changed under a name that was removed
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.fd = -1
        try:
            self._device = os.fstat(self._root_fd).st_dev
            self._tree = Tree(file_handle(self._root_fd, b""), ROOT_GFID)
            self.fd = _init(unlimited)
            self._watch(b"", record=False)
        except OSError as error:
            self.close()
            raise RecorderUnavailable(f"the directories of {root} cannot be watched: {error}") from error
        except RecorderUnavailable:
            self.close()
            raise
        self._root_state = RootState(self._root_fd)

    def close(self) -> None:
        for fd in (self.fd, self._root_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._root_fd = -1

    def drain(self, full: Callable[[], bool]) -> bool:
        while not full():
            try:
                data = os.read(self.fd, READ_SIZE)
            except BlockingIOError:
                if not self._settle():
                    return True
                continue  # watching new directories takes time: see what happened meanwhile
            self._take(data)
        return False

    def _take(self, data: bytes) -> None:
        overflow = False
        for mask, directory, name, target, new_directory, new_name in fanotify.parse(data):
            self.events += 1
            if mask & Q_OVERFLOW:
                overflow = True
            elif mask & RENAME:
                self._renamed(mask, directory, name, target, new_directory, new_name)
            elif directory is not None:
                # A handle that is not known is that of a directory which is gone, or left the volume.
                node = self._tree.by_handle.get(directory)
                if node is not None:
                    self._changed(mask, node, name, target)
        if overflow:
            self.overflows += 1
            self._start_over("overflow")

    def _changed(self, mask: int, node: Node, name: bytes, target: bytes | None) -> None:
        if node.parent is None and name == OWN:
            return
        if name == b".":
            if node.parent is not None or (mask & ATTRIB and self._root_state.changed()):
                self._gather.add(node, b"", M)
            return
        kinds = KINDS[mask & KIND_EVENTS]
        if kinds:
            self._gather.add(node, name, kinds)
        if kinds & D:
            self._modified.add(target)
        if mask & ONDIR:
            self._doubt_directory(mask, node, name, target)
        elif mask & DELETE and target is not None and target in self._modified:
            self._unnamed.add(target)

    def _doubt_directory(self, mask: int, node: Node, name: bytes, target: bytes | None) -> None:
        known = self._tree.by_handle.get(target or b"")
        if mask & (CREATE | RENAME) or known is None:
            self._doubts.append(_Doubt(node, name))
        if mask & (DELETE | RENAME) and known is not None:
            self._doubts.append(_Doubt(known, b""))

    def _renamed(
        self,
        mask: int,
        old: bytes | None,
        name: bytes,
        target: bytes | None,
        new: bytes | None,
        new_name: bytes,
    ) -> None:
        """Only the side that is watched is reported; RENAME_EXCHANGE gives one event, so look at both."""
        old_node = self._tree.by_handle.get(old or b"")
        new_node = self._tree.by_handle.get(new or b"")
        inside = old_node is not None and new_node is not None
        changed = D if target in self._modified and not mask & ONDIR else 0
        for node, child in ((old_node, name), (new_node, new_name)):
            if node is None or (node.parent is None and child == OWN):
                continue
            self._gather.add(node, child, E | changed if inside else E | M | D)
            self._doubts.append(_Doubt(node, child))
        known = self._tree.by_handle.get(target or b"")
        if known is not None:
            self._doubts.append(_Doubt(known, b""))

    # ---- directories come, move and go

    def _settle(self) -> bool:
        """Look at what is in doubt, now that no event waits. True when there was something."""
        if not self._doubts:
            return False
        doubts, self._doubts = self._doubts, []
        # New names first: a directory is lost only if it is found at none of them.
        for doubt in sorted(doubts, key=lambda doubt: not doubt.name):
            if not (self._look_at(doubt) if doubt.name else self._is_gone(doubt.node)):
                doubt.tries += 1
                self._doubts.append(doubt)
        if any(doubt.tries > _MAX_TRIES for doubt in self._doubts):
            log.warning("directories move faster than they can be followed")
            self._start_over("recorder")
        elif len(self._doubts) == len(doubts):
            time.sleep(0.001)  # a rename is visible a moment before its event is queued
        return True

    def _look_at(self, doubt: _Doubt) -> bool:
        node = self._tree.by_handle.get(doubt.node.handle)
        if node is None:
            return True
        if not self._is_there(node):
            return False  # a directory above was renamed, and its event is still to come
        path = node.path + b"/" + doubt.name if node.path else doubt.name
        try:
            handle = file_handle(self._root_fd, path)
        except OSError as error:
            if error.errno not in _ABSENT:
                return False
            handle = b""
        before = node.children.get(doubt.name)
        if before is not None and before.handle not in (b"", handle):
            # An exchange tells of one of the two only. Lost or not: a rename that is still to come finds it.
            self._doubts.append(_Doubt(before, b""))
        known = self._tree.by_handle.get(handle)
        if not handle:
            pass
        elif known is None:
            # New, or not watched for a while: all of it has to be looked at, names that are gone included.
            if self._watch(path, record=True):
                self._gather.add(node, doubt.name, E | M | D)
        elif known.path != path:
            self._tree.move(known, node, doubt.name)
        return True

    def _is_gone(self, node: Node) -> bool:
        """A directory that is no longer where it was, and was not found at any new name, left the volume."""
        known = self._tree.by_handle.get(node.handle)
        if known is None or self._is_there(known):
            return True
        if known.parent is not None and not self._is_there(known.parent):
            return False
        self._tree.cut(known)
        return True

    def _is_there(self, node: Node) -> bool:
        try:
            return file_handle(self._root_fd, node.path) == node.handle
        except OSError:
            return False

    def _start_over(self, reason: str) -> None:
        self._doubts.clear()
        self._tree.clear()
        self._watch(b"", record=False)
        # Only now: whatever scans because of the gap begins after everything is watched.
        self._on_gap(reason)

    def _watch(self, path: bytes, *, record: bool) -> bool:
        """Mark a directory and all below it. Raises RecorderUnavailable when there are too many.

        ``record``: D for each directory found below. False when there is no directory at ``path``.
        """
        pending = [path]
        found = False
        while pending:
            path = pending.pop()
            try:
                fd = open_beneath(self._root_fd, path, _OPEN)
            except OSError as error:
                if error.errno not in _ABSENT:
                    log.warning("changes in %r cannot be recorded: %s", path, error.strerror)
                continue
            try:
                pending.extend(self._watch_one(fd, path, record=record))
                found = True
            finally:
                os.close(fd)
        return found

    def _watch_one(self, fd: int, path: bytes, *, record: bool) -> list[bytes]:
        stat = stat_at(fd, b"")
        if stat.dev != self._device:
            return []
        handle = file_handle(fd, b"")
        try:
            fanotify.mark_directory(self.fd, fd, MASK | EVENT_ON_CHILD)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise RecorderUnavailable(f"directories cannot be watched: {error}") from error
        node = self._tree.put(path, handle, gfid_from(handle, stat.btime_ns)) if path else self._tree.root
        below = []
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if not path and name == OWN:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(path + b"/" + name if path else name)
                    if record:
                        self._gather.add(node, name, E | M | D)
        return below

    # ---- the rest of a recorder

    def resume(self) -> bool:
        return False

    def seen_until(self, now_ns: int) -> int:
        return now_ns

    def before_close(self, *, whole: bool) -> bool:
        try:
            for handle in self._unnamed:
                record_object(self._root_fd, self._gather, handle, M | D)
        except PermissionError:
            pass  # the names that the secondary knows of it are looked at all the same (tasks/entry.py)
        except OSError as error:
            log.warning("what changed under a name that is gone cannot be found: %s", error)
            self._start_over("recorder")
        self._unnamed.clear()
        if self._tree.root.names:
            self._root_state.refresh()
        return True

    def look_since(self, since_ns: int | None) -> None:
        """Here every change shows in a ctime."""

    explained = look_since

    def look(self, path: bytes, names: list[bytes], kinds: int) -> None:
        node = self._tree.by_handle.get(file_handle(self._root_fd, path))
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "not a directory of the volume", path)
        for name in names:
            self._gather.add(node, name, kinds)

    def applied(self, serial: int) -> None:
        self._modified.applied(serial)

    def next_segment(self, serial: int) -> None:
        self._modified.serial = serial


def _init(unlimited: bool) -> int:
    if unlimited:
        try:
            return fanotify.fanotify_init(unlimited=True)
        except PermissionError:
            pass
    return fanotify.fanotify_init(unlimited=False)
