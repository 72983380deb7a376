"""What a recorder has to remember: whose content changed, and what the volume's root looked like."""

from __future__ import annotations

import os

_MODIFIED_OBJECTS = 100_000
_OWN_XATTRS = ("user.seamark.", "trusted.seamark.")


class Modified:
    """Objects whose content changed in segments that are not applied yet.

    D is recorded under a name. If the object is renamed before a consumer looks, the name leads nowhere,
    and the new name must say D as well, or a change that kept size and mtime would be lost.
    Too many of them to remember: then any object counts as changed, until everything is applied.
    """

    def __init__(self) -> None:
        self._serials: dict[int, int] = {}
        self._all_until = 0
        self.serial = 1

    def add(self, handle: bytes | None) -> None:
        if len(self._serials) >= _MODIFIED_OBJECTS:
            self._serials.clear()
            self._all_until = self.serial
        # Equal hashes of different handles only cost a look too many.
        self._serials[hash(handle)] = self.serial

    def __contains__(self, handle: bytes | None) -> bool:
        return self._all_until > 0 or hash(handle) in self._serials

    def applied(self, serial: int) -> None:
        if self._all_until <= serial:
            self._all_until = 0
        self._serials = {key: value for key, value in self._serials.items() if value > serial}

    @property
    def empty(self) -> bool:
        return not self._serials and not self._all_until


class RootState:
    """What of the root's metadata is not ours.

    The mark is stored as an xattr of the root: without this, storing it would be recorded as a change, and
    replicating that change would store a new mark.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._known = self._look()

    def changed(self) -> bool:
        """Whether it changed since the last look."""
        before, self._known = self._known, self._look()
        return before != self._known

    def refresh(self) -> None:
        """Take it as it is: a name in the root changed, so a consumer looks at the root anyway."""
        self._known = self._look()

    def _look(self) -> tuple[object, ...]:
        stat = os.fstat(self._fd)
        # Through /proc: the descriptor's own calls would need it open for reading.
        path = f"/proc/self/fd/{self._fd}"
        try:
            names = [name for name in os.listxattr(path) if not name.startswith(_OWN_XATTRS)]
            xattrs = tuple((name, os.getxattr(path, name)) for name in sorted(names))
        except OSError:
            xattrs = ()
        return stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, xattrs
