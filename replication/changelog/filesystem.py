"""The recorder that marks the whole file system (CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH) and keeps what is in the volume."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from replication.changelog import fanotify
from replication.changelog.fanotify import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    MODIFY,
    ONDIR,
    Q_OVERFLOW,
    RENAME,
)
from replication.changelog.gather import Gather, Node, Tree, record_object
from replication.changelog.memory import Modified, RootState
from replication.changelog.record import Kind
from replication.changelog.recorder import OWN, RecorderUnavailable
from replication.volume.handle import file_handle, open_by_handle, stat_at
from replication.volume.identity import ROOT_GFID, gfid_from

log = logging.getLogger(__name__)

MASK = CREATE | DELETE | RENAME | MODIFY | ATTRIB | CLOSE_WRITE | ONDIR
READ_SIZE = 1 << 20
_CACHED_DIRECTORIES = 50_000

E, M, D = int(Kind.E), int(Kind.M), int(Kind.D)
_ALL = E | M | D
_ENTRY_EVENTS = CREATE | DELETE
_DATA_EVENTS = MODIFY | CLOSE_WRITE
KINDS = {
    bits: (E if bits & _ENTRY_EVENTS else 0) | (M if bits & ATTRIB else 0) | (D if bits & _DATA_EVENTS else 0)
    for bits in range((_ENTRY_EVENTS | ATTRIB | _DATA_EVENTS) + 1)
    if not bits & ~(_ENTRY_EVENTS | ATTRIB | _DATA_EVENTS)
}
KIND_EVENTS = _ENTRY_EVENTS | ATTRIB | _DATA_EVENTS


class FilesystemRecorder:
    """Records a volume through one mark on its file system.

    ``on_gap(reason)`` is called at the very position where something was lost. Raises RecorderUnavailable.
    """

    mode = "filesystem"
    uneasy = False

    def __init__(
        self, root: str, gather: Gather, on_gap: Callable[[str], None], *, unlimited: bool = True
    ) -> None:
        self.events = self.overflows = 0
        self._gather = gather
        self._on_gap = on_gap
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.fd = -1
        try:
            self._tree = Tree(file_handle(self._root_fd, b""), ROOT_GFID)
            os.close(open_by_handle(self._root_fd, self._tree.root.handle, os.O_PATH))
            self.fd = fanotify.fanotify_init(unlimited=unlimited)
            fanotify.mark_filesystem(self.fd, self._root_fd, MASK)
        except OSError as error:
            self.close()
            raise RecorderUnavailable(f"the file system of {root} cannot be watched: {error}") from error
        self._foreign: set[bytes] = set()
        self._were_foreign: set[bytes] = set()
        self._dead: set[bytes] = set()
        self._nameless: dict[bytes, int] = {}
        self._modified = Modified()
        self._returned = Modified()  # directories that came from outside: whatever is in them may be changed
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
                return True
            self._take(data)
        return False

    def _take(self, data: bytes) -> None:
        nodes, add, modified, nameless = (
            self._tree.by_handle,
            self._gather.add,
            self._modified,
            self._nameless,
        )
        for mask, directory, name, target, new_directory, new_name in fanotify.parse(data):
            self.events += 1
            if directory is None:
                self._without_name(mask, target)
                nodes = self._tree.by_handle
                continue
            if mask & RENAME:
                self._renamed(mask, directory, name, target, new_directory, new_name)
            node = nodes.get(directory)
            if node is None:
                node = self._find(directory)
                if node is None:
                    self._elsewhere(mask, directory, target)
                    continue
            kinds = KINDS[mask & KIND_EVENTS]
            if mask & ONDIR and (name == b"." or mask & DELETE):
                self._directory_itself(mask, node, name, target)
            if node.parent is None and name == OWN:
                continue
            if kinds and name != b".":
                if mask & CREATE and not mask & ONDIR and not self._returned.empty:
                    kinds |= D  # another link to a file in one of them
                add(node, name, kinds)
                if kinds & D:
                    modified.add(target)
                if kinds & E and target is not None and target in nameless:
                    nameless[target] |= mask & _ENTRY_EVENTS

    def _without_name(self, mask: int, target: bytes | None) -> None:
        if mask & Q_OVERFLOW:
            self._overflow()
        elif target is not None:
            self._nameless[target] = self._nameless.get(target, 0) | mask

    def _overflow(self) -> None:
        self.overflows += 1
        # Renames may be among what was lost.
        self._tree.clear()
        self._foreign.clear()
        self._on_gap("overflow")

    def _elsewhere(self, mask: int, directory: bytes, target: bytes | None) -> None:
        """An event in a directory outside the volume, or in one that is gone.

        Gone: its own removal, or that of a directory above it, or its leaving the volume, is an event of
        its own in a directory that still exists, so what was in it need not be recorded.
        """
        gone = directory in self._dead
        if gone and mask & _DATA_EVENTS:
            self._modified.add(target)
        if mask & _ENTRY_EVENTS and target is not None and self._nameless.get(target) == ATTRIB:
            # Its link count changed, by this. In a directory that is gone it may have been ours: then it only
            # matters if its content was to be found under the name that is gone with it.
            if not gone or target not in self._modified:
                del self._nameless[target]

    def _directory_itself(self, mask: int, node: Node, name: bytes, target: bytes | None) -> None:
        if name != b".":
            gone = self._tree.by_handle.get(target or b"")
            if gone is not None:
                self._tree.cut(gone)
        elif node.parent is not None:
            self._gather.add(node, b"", M)
        elif mask & ATTRIB and self._root_state.changed():
            self._gather.add(node, b"", M)

    def _renamed(
        self,
        mask: int,
        directory: bytes,
        name: bytes,
        target: bytes | None,
        new: bytes | None,
        new_name: bytes,
    ) -> None:
        """Both names in the same segment. RENAME_EXCHANGE is one event: each name may hold something now."""
        old_node = self._within(directory, name)
        new_node = self._within(new, new_name) if new is not None else None
        if old_node is None and new_node is None:
            return
        if mask & ONDIR:
            self._forget_moved(old_node, name, new_node, new_name, target)
        if old_node is None or new_node is None:
            # From or to the outside: while it was there, what happened to it, or below it, was not recorded.
            kinds_old = kinds_new = _ALL
            came = target if old_node is None else self._handle(old_node, name)  # that by RENAME_EXCHANGE
            if came is not None:
                self._returned.add(came)
        else:
            changed = target in self._modified and not mask & ONDIR
            kinds_new = E | D if changed or self._came_back(old_node) else E
            kinds_old = E | D if self._has_changed(old_node, name) or self._came_back(new_node) else E
        if old_node is not None:
            self._gather.add(old_node, name, kinds_old)
        if new_node is not None:
            self._gather.add(new_node, new_name, kinds_new)

    def _within(self, directory: bytes, name: bytes) -> Node | None:
        node = self._tree.by_handle.get(directory) or self._find(directory)
        return None if node is None or (node.parent is None and name == OWN) else node

    def _has_changed(self, node: Node, name: bytes) -> bool:
        """Whether what an exchange put at a renamed object's old name has changed content."""
        return not self._modified.empty and self._handle(node, name) in self._modified

    def _handle(self, node: Node, name: bytes) -> bytes | None:
        try:
            return file_handle(self._root_fd, os.path.join(node.path, name))
        except OSError:
            return None

    def _came_back(self, node: Node) -> bool:
        """Whether a directory, or one above it, was outside: then what leaves it may have been changed there."""
        at: Node | None = node if not self._returned.empty else None
        while at is not None and at.parent is not None:
            handle = at.handle or self._handle(at.parent, at.name)
            if handle is None or handle in self._returned:
                return True
            at = at.parent
        return False

    def _forget_moved(
        self, old: Node | None, name: bytes, new: Node | None, new_name: bytes, target: bytes | None
    ) -> None:
        """Paths below a renamed directory are wrong now, wherever they were learned."""
        moved = self._tree.by_handle.get(target or b"")
        candidates = [moved, old and old.children.get(name), new and new.children.get(new_name)]
        for node in candidates:
            if node is not None:
                self._tree.cut(node)
        if old is None or new is None:
            self._forget_foreign()

    def _forget_foreign(self) -> None:
        """Where these are is to be found out anew. (What is here by then may have an event of that still to come.)"""
        if len(self._were_foreign) > _CACHED_DIRECTORIES:
            self._were_foreign.clear()
        self._were_foreign |= self._foreign
        self._foreign.clear()

    def _find(self, handle: bytes) -> Node | None:
        """The directory of the volume that a handle means; None when it is elsewhere, or gone."""
        if handle in self._foreign or handle in self._dead:
            return None
        try:
            fd = open_by_handle(self._root_fd, handle, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                self._unsure(error)
            self._dead.add(handle)
            return None
        try:
            return self._place(handle, fd)
        except (
            OSError
        ) as error:  # so deep that no path is long enough, which anybody can make; or a disk that fails
            self._unsure(error)
            self._dead.add(handle)
            return None
        finally:
            os.close(fd)

    def _place(self, handle: bytes, fd: int) -> Node | None:
        stat = stat_at(fd, b"")
        if stat.nlink == 0:
            self._dead.add(handle)
            return None
        path = self._path_of(handle, fd)
        if path is None or path == OWN or path.startswith(OWN + b"/"):
            if len(self._foreign) > _CACHED_DIRECTORIES:
                self._forget_foreign()
            self._foreign.add(handle)
            return None
        if handle in self._were_foreign:
            self._returned.add(handle)
        return self._tree.put(path, handle, gfid_from(handle, stat.btime_ns))

    def _path_of(self, handle: bytes, fd: int) -> bytes | None:
        """Where below the root a directory is; None when it is not. Raises OSError."""
        path: bytes | None = None
        for _ in range(3):
            root = os.readlink(b"/proc/self/fd/%d" % self._root_fd)
            found = os.readlink(b"/proc/self/fd/%d" % fd)
            if found == root:
                return b""
            below = root.rstrip(b"/") + b"/"
            path = found[len(below) :] if found.startswith(below) else None
            try:
                if path is None and os.readlink(b"/proc/self/fd/%d" % self._root_fd) == root:
                    return None
                if path is not None and file_handle(self._root_fd, path) == handle:
                    return path
            except OSError:
                pass  # renamed between two of these calls: look again
        # It never stands still, or something is mounted above it. A record too many does no harm.
        return path

    def _unsure(self, error: OSError) -> None:
        log.error("a change cannot be placed, so all of the volume has to be scanned: %s", error)
        self._on_gap("recorder")

    def resume(self) -> bool:
        return False

    def seen_until(self, now_ns: int) -> int:
        return now_ns

    def before_close(self, *, whole: bool) -> bool:
        for handle, mask in self._nameless.items():
            # A new link alone takes nothing away, and is recorded as an entry itself.
            if mask & (_DATA_EVENTS | DELETE) or not mask & CREATE or handle in self._modified:
                self._record_object(handle, mask)
        self._nameless.clear()
        self._dead.clear()
        if self._tree.root.names:
            self._root_state.refresh()
        if len(self._tree.by_handle) > _CACHED_DIRECTORIES:
            self._tree.clear()
        return True

    def _record_object(self, handle: bytes, mask: int) -> None:
        """An event that no name came with: its last name but one was removed, or it was opened by handle."""
        try:
            changed = mask & _DATA_EVENTS or handle in self._modified
            record_object(self._root_fd, self._gather, handle, M | D if changed else M)
        except OSError as error:
            self._unsure(error)

    def look_since(self, since_ns: int | None) -> None:
        """Here every change shows in a ctime."""

    explained = look_since

    def look(self, path: bytes, names: list[bytes], kinds: int) -> None:
        handle = file_handle(self._root_fd, path)
        node = self._tree.by_handle.get(handle) or self._find(handle)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "not a directory of the volume", path)
        for name in names:
            self._gather.add(node, name, kinds)

    def applied(self, serial: int) -> None:
        self._modified.applied(serial)
        self._returned.applied(serial)

    def next_segment(self, serial: int) -> None:
        self._modified.serial = self._returned.serial = serial
