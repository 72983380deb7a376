"""What rsync and tar have in common: files go to a staging directory by gfid, and are then committed.

Each file is opened beneath the volume's root, checked to be the inode that its gfid means, and held open
until all is over. What the program reads is a private directory of links named by gfid, each to one of these
descriptors, which it inherits: whatever is renamed, replaced, or swapped for a symlink meanwhile, it reads
what we opened, and the look afterwards is at what it read. The far side's ``.seamark/staging/UNIT/new`` is
where it writes. So names of any bytes never meet a command line. Owner, mode, times and xattrs travel with
the commit.
"""

from __future__ import annotations

import errno
import os
import resource
import tempfile
import time
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.remote.answers import SecondaryError
from replication.remote.errors import AgentFailed
from replication.transfer.item import FileItem, ItemResult, unreadable
from replication.transfer.stream import BUSY_S, meta_row
from replication.volume.directory import VanishedError, settled
from replication.volume.handle import Stat, open_beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from replication.remote.client import SecondaryClient
    from replication.remote.target import Target
    from replication.volume.directory import DirectoryVolume

_OTHER_FILES = 200  # descriptors that a worker has open besides
_FEWEST_FILES = 16


class Failure(NamedTuple):
    """Why one file did not arrive. ``code`` as in ItemResult, or "vanished"."""

    code: str
    message: str


class Staging(NamedTuple):
    """Where one unit's files go. Paths are absolute, on the secondary."""

    unit: str
    new: bytes
    basis: bytes
    in_place: frozenset[bytes]


class Opened(NamedTuple):
    """A file that is held open; ``stat`` is of before it was read."""

    item: FileItem
    fd: int
    stat: Stat

    @property
    def sparse(self) -> bool:
        return self.stat.blocks * 512 < self.stat.size


class Sources(NamedTuple):
    """What the program reads: a directory of links named by gfid, and the descriptors that they lead to."""

    directory: bytes
    fds: tuple[int, ...]


class StagedSender:
    """Sends units of files by an outside program. Subclasses say how in ``_move``."""

    def __init__(
        self,
        volume: DirectoryVolume,
        client: SecondaryClient,
        target: Target,
        *,
        alive: Callable[[], object] = lambda: None,
        progress: Callable[[int, int], None] = lambda _files, _bytes: None,
        gated: bool = False,
    ) -> None:
        """``alive`` is called about once a second while a program runs; what it raises ends the program.
        ``progress`` is told of files and bytes as they are done. ``gated``: the far side takes paths as if
        the root were ``/`` (secondary/gate.py).
        """
        self._volume = volume
        self._client = client
        self._target = target
        self._alive = alive
        self._progress = progress
        self._sent: dict[bytes, int] = {}
        self._root = b"/" if gated else target.path

    def send(self, items: list[FileItem]) -> list[ItemResult]:
        """Send every item; one result for each.

        The same items again resume what was interrupted. Raises LinkLost, SecondaryError, Unreachable,
        NoRsync, NoTar or VolumeAway for the whole unit.
        """
        at_once = _files_at_once()
        return [
            result
            for start in range(0, len(items), at_once)
            for result in self._send_some(items[start : start + at_once])
        ]

    def _send_some(self, items: list[FileItem]) -> list[ItemResult]:
        results: list[ItemResult] = []
        opened: dict[bytes, Opened] = {}
        with ExitStack() as closing:
            for item in items:
                found = self._open(item)
                if isinstance(found, ItemResult):
                    results.append(found)
                else:
                    closing.callback(os.close, found.fd)
                    opened[item.gfid] = found
            if not opened:
                return results
            staging = self._stage(unit_name(opened), list(opened))
            with _sources(opened) as sources:
                failures = self._move(staging, sources, list(opened.values()))
            return results + self._finish(staging.unit, opened, failures)

    def _move(self, staging: Staging, sources: Sources, files: list[Opened]) -> dict[bytes, Failure]:
        """Copy ``sources.directory``/<gfid hex> to ``staging.new``; what failed, by gfid. Notes bytes in ``_sent``."""
        raise NotImplementedError

    # ---- the primary's side

    def _open(self, item: FileItem) -> Opened | ItemResult:
        """The file, if it is still there under its gfid; else its result."""
        directory, name = os.path.split(item.path)
        try:
            dir_fd = open_beneath(self._volume.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
            try:
                fd, stat = self._volume.open_file(dir_fd, name, item.observed, item.gfid)
            finally:
                os.close(dir_fd)
            return Opened(item, fd, stat)
        except VanishedError:
            return ItemResult(item.gfid, "vanished")
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP}:
                return ItemResult(item.gfid, "vanished")
            return unreadable(self._volume, item, error)

    # ---- the secondary's side

    def _stage(self, unit: str, gfids: list[bytes]) -> Staging:
        while True:
            try:
                header = self._client.call(
                    "stage", unit=unit, gfids=[g.hex() for g in gfids], in_place=None
                ).header
                break
            except SecondaryError as error:
                if error.code != "busy":
                    raise
            self._alive()
            time.sleep(BUSY_S)
        return Staging(
            unit,
            self._below_root(header["path"]),
            self._below_root(header["basis"]),
            frozenset(bytes.fromhex(gfid) for gfid in header["in_place"]),
        )

    def _below_root(self, path: str) -> bytes:
        parts = path.split("/")
        if path.startswith("/") or ".." in parts or parts[0] != ".seamark":
            raise AgentFailed(f"the secondary agent names {path!r} as its staging directory")
        return os.path.join(self._root, os.fsencode(path))

    def _finish(
        self, unit: str, opened: dict[bytes, Opened], failures: dict[bytes, Failure]
    ) -> list[ItemResult]:
        """Look again at what was read, commit what arrived, and say what became of each."""
        results: list[ItemResult] = []
        rows: list[list[Any]] = []
        for gfid, file in opened.items():
            failure = failures.get(gfid)
            if failure is not None and failure.code == "changed":
                results.append(ItemResult(gfid, "changed", message=failure.message))
                continue
            if failure is not None:
                vanished = failure.code == "vanished"
                results.append(ItemResult(gfid, "vanished" if vanished else "error", *failure))
                continue
            try:
                xattrs, new = self._volume.xattrs(file.fd), self._volume.stat(file.fd)
            except OSError as error:
                results.append(unreadable(self._volume, file.item, error))
                continue
            still = (new.ctime_ns, new.size) == (file.stat.ctime_ns, file.stat.size)
            ctime_ns = settled(new.ctime_ns) if still else 0
            rows.append(meta_row(gfid, new, new.size, ctime_ns, xattrs, file.item.ticket))
            sent = self._sent.get(gfid, 0)
            results.append(
                ItemResult(gfid, "ok" if still else "changed", bytes_sent=sent, ctime_ns=new.ctime_ns)
            )
        refused = self._commit(unit, rows, keep=any(row.status == "error" for row in results))
        # Refused since it changed while it was sent (its size is another by now): still a change, no error.
        return [
            result if result.status == "changed" else refused.get(result.gfid, result) for result in results
        ]

    def _commit(self, unit: str, rows: list[list[Any]], *, keep: bool) -> dict[bytes, ItemResult]:
        """Place what arrived; results of those that the secondary refused, by gfid.

        A unit of which nothing arrived stays as it is: the next try resumes it.
        """
        if not rows and keep:
            return {}
        refused: dict[bytes, ItemResult] = {}
        for hexed, code, message in self._client.call("commit", unit=unit, items=rows).header["errors"]:
            gfid = bytes.fromhex(hexed)
            status = "vanished" if code == "not-found" else "error"
            refused[gfid] = ItemResult(gfid, status, code, message)  # type: ignore[arg-type]
        return refused


def _files_at_once() -> int:
    """How many files may be held open: what the limit leaves after everything else that a worker has open."""
    return max(_FEWEST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES)


@contextmanager
def _sources(opened: dict[bytes, Opened]) -> Iterator[Sources]:
    """A private directory with a link to the descriptor of each file, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="seamark-") as directory:
        for gfid, file in opened.items():
            os.symlink(
                b"/proc/self/fd/%d" % file.fd,
                os.path.join(os.fsencode(directory), name_of(gfid)),
            )
        yield Sources(os.fsencode(directory), tuple(file.fd for file in opened.values()))


def unit_name(gfids: Iterable[bytes]) -> str:
    """The staging directory of these files: the same at every try, so that a partial transfer is found again."""
    return blake2b(b"".join(sorted(gfids)), digest_size=12).hexdigest()


def name_of(gfid: bytes) -> bytes:
    """A gfid's file name in staging directories."""
    return gfid.hex().encode()


def quoted(word: bytes) -> bytes:
    """One word for a POSIX shell, byte by byte: paths may be of any bytes."""
    return b"'" + word.replace(b"'", b"'\\''") + b"'"


def failure_from(line: str) -> Failure:
    """An error line of rsync or tar as a Failure, by the error that it names. Needs LC_ALL=C on this side."""
    lowered = line.lower()
    for words, code in _CODES:
        if any(word in lowered for word in words):
            return Failure(code, line)
    return Failure("io", line)


# "wrote only": how tar reports a disk that filled up in the middle of a block.
_CODES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("no space left", "disk quota exceeded", "wrote only", "(28)", "(122)"), "no-space"),
    (("permission denied", "operation not permitted", "(13)", "(1)"), "permission"),
    (("read-only file system", "(30)"), "read-only"),
)
