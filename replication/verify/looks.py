"""Looking at single names, once more: is what differs a difference, or a change that is on its way?

A look reads the primary, then the secondary, then the primary again. Who asked for it (scheduler/verification.py)
knows by then that everything from before an earlier look is on the secondary: if the primary is as it was at that
look, and before and after this one, then what the secondary has must be the same.
"""

from __future__ import annotations

import os
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.secondary.handles import inode_number
from replication.verify.compare import Difference
from replication.verify.ends import Ends, open_directory, rows_of
from replication.verify.totals import Totals
from replication.volume.handle import open_beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from replication.secondary.inspection import Row

_ABSENT = "-"
_AT_ONCE = 100  # names in one request


class Suspect(NamedTuple):
    """A name at which something differs. ``here``, ``there``: stamps of the states that were seen.

    ``newest_ns``: when it, or a directory that it lies in, last changed on the primary. ``stable``: the primary was
    the same before and after the secondary was looked at. ``link``: inode numbers here and there, 0 with one name.
    ``regular``: a file here. A path that ends with a slash means what is in a directory that cannot be listed.
    """

    path: bytes
    kind: Difference | None  # None: it is equal
    detail: str = ""
    here: str = _ABSENT
    there: str = _ABSENT
    newest_ns: int = 0
    stable: bool = False
    link: tuple[int, int] = (0, 0)
    regular: bool = False

    def plain(self) -> list[Any]:
        """As JSON has it."""
        return [os.fsdecode(self.path), self.kind and self.kind.value, *self[2:]]


def suspect_from(values: list[Any]) -> Suspect:
    """What ``plain`` made."""
    path, kind, detail, here, there, newest, stable, link, *rest = values
    return Suspect(
        os.fsencode(path), Difference(kind) if kind else None, detail, here, there, newest, stable,
        (link[0], link[1]), *rest,
    )  # fmt: skip


def stamp(dir_fd: int | None, row: Row | None) -> str:
    """What identifies the state of a name: inode and ctime, and here also the directory's inode."""
    if row is None:
        return _ABSENT
    return f"{row.ino}:{row.ctime}" + (f":{os.fstat(dir_fd).st_ino}" if dir_fd is not None else "")


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and name; the root itself is the name "." in it."""
    return os.path.split(path)


class Looks:
    """Looks at some names, and says of each what it is."""

    def __init__(self, ends: Ends, *, list_equal: bool = False) -> None:
        self.ends = ends
        self.totals = Totals(list_equal=list_equal)
        self.found: list[Suspect] = []

    def run(self, paths: Iterable[bytes]) -> None:
        """Fills ``found``; what is equal is counted too."""
        for directory, group in groupby(sorted(paths, key=split), key=lambda path: split(path)[0]):
            names = [split(path)[1] for path in group]
            for start in range(0, len(names), _AT_ONCE):
                self._look(directory, names[start : start + _AT_ONCE])
                self.ends.alive()

    def _look(self, directory: bytes, names: list[bytes]) -> None:
        try:
            fd = open_directory(self.ends.volume, directory)
        except OSError as error:
            text = f"on the primary: {error.strerror}"
            self.found += [
                Suspect(os.path.join(directory, name), Difference.UNREADABLE, text, stable=True)
                for name in names
            ]
            return
        try:
            before = {name: self.ends.row(fd, name) if fd is not None else None for name in names}
            part = {"path": os.fsdecode(directory), "names": [os.fsdecode(name) for name in names]}
            reply = self.ends.ask([part], rows=True).result()
            upto = (reply.header["parts"][0] or {}).get("upto")
            (there,) = rows_of(reply)
            again = False
            for name in names:
                again = (
                    again or os.fsencode(upto or "") == name
                )  # it had read enough: the rest comes next time
                if again:
                    self.found.append(Suspect(os.path.join(directory, name), Difference.CONTENT))
                    continue
                if isinstance(there, int):
                    text = f"on the secondary: {os.strerror(there)}"
                    self.found.append(
                        Suspect(os.path.join(directory, name), Difference.UNREADABLE, text, stable=True)
                    )
                    continue
                self._judge(fd, directory, name, before[name], (there or {}).get(name))
        finally:
            if fd is not None:
                os.close(fd)

    def _judge(
        self, fd: int | None, directory: bytes, name: bytes, here: Row | None, there: Row | None
    ) -> None:
        path = os.path.join(directory, name)
        kind, detail, row = self.ends.compare(fd, directory, here, there)
        mine = stamp(fd, here)
        stable = mine == self._now(fd, directory, name)
        link = (0, 0)
        if here is not None and there is not None and here.kind == there.kind != "d":
            link = (here.ino if here.nlink > 1 else 0, there.ino if there.nlink > 1 else 0)
        if kind is None and row is not None:
            self.totals.equal(directory, row, self.ends.manner)
        newest = max([here.ctime if here else 0, *_ctimes(self.ends, directory)])
        regular = here is not None and here.kind == "f"
        self.found.append(
            Suspect(path, kind, detail, mine, stamp(None, there), newest, stable, link, regular)
        )

    def _now(self, fd: int | None, directory: bytes, name: bytes) -> str:
        """The stamp once more, by the path from the root, which may lead elsewhere by now."""
        try:
            again = open_directory(self.ends.volume, directory)
        except OSError:
            return "?"
        if again is None:
            return _ABSENT
        try:
            s = os.stat(name, dir_fd=again, follow_symlinks=False)
            return f"{inode_number(s.st_ino)}:{s.st_ctime_ns}:{os.fstat(again).st_ino}"
        except FileNotFoundError:
            return _ABSENT
        finally:
            os.close(again)


def _ctimes(ends: Ends, directory: bytes) -> Iterator[int]:
    """When the directories on the way to a name last changed; of the root, when its names did.

    The mark is an attribute of the root, and changes its ctime all the time.
    """
    while True:
        try:
            fd = open_beneath(ends.volume.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            pass
        else:
            try:
                s = os.fstat(fd)
                yield s.st_ctime_ns if directory else s.st_mtime_ns
            finally:
                os.close(fd)
        if not directory:
            return
        directory = os.path.dirname(directory)
