"""What rsync and tar have in common: files go to a staging directory by gfid, and are then committed.

A private directory of symbolic links, one per file and named by its gfid, is what the program reads;
the far side's ``.seamark/staging/UNIT/new`` is where it writes. So names of any bytes never meet a
command line, and a rename on either side during the transfer changes nothing. Identity is checked
before and after; owner, mode, times and xattrs travel with the commit.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.remote.client import SecondaryError
from replication.remote.errors import AgentFailed
from replication.transfer.item import FileItem, ItemResult
from replication.transfer.stream import BUSY_S, meta_row
from replication.volume.directory import VanishedError, settled
from replication.volume.handle import Stat, open_beneath, stat_at
from replication.volume.xattrs import read_xattrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from replication.remote.client import SecondaryClient
    from replication.remote.target import Target
    from replication.volume.directory import DirectoryVolume


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
        NoRsync or NoTar for the whole unit.
        """
        results: list[ItemResult] = []
        before: dict[bytes, tuple[FileItem, Stat]] = {}
        for item in items:
            look = self._look(item)
            if isinstance(look, ItemResult):
                results.append(look)
            else:
                before[item.gfid] = (item, look[0])
        if not before:
            return results
        staging = self._stage(unit_name(before), list(before))
        with self._sources([item for item, _ in before.values()]) as sources:
            failures = self._move(staging, sources, [item for item, _ in before.values()])
        return results + self._finish(staging.unit, before, failures)

    def _move(self, staging: Staging, sources: bytes, items: list[FileItem]) -> dict[bytes, Failure]:
        """Copy ``sources``/<gfid hex> to ``staging.new``; what failed, by gfid. Notes bytes in ``_sent``."""
        raise NotImplementedError

    # ---- the primary's side

    def _look(self, item: FileItem) -> tuple[Stat, dict[str, str]] | ItemResult:
        """Stat and xattrs of the file, if it is still there under its gfid; else its result."""
        directory, name = os.path.split(item.path)
        try:
            dir_fd = open_beneath(self._volume.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
            try:
                fd, _ = self._volume.open_file(dir_fd, name, (item.ino, item.ctime_ns), item.gfid)
            finally:
                os.close(dir_fd)
            try:
                xattrs = read_xattrs(fd)
                return stat_at(fd, b""), xattrs
            finally:
                os.close(fd)
        except VanishedError:
            return ItemResult(item.gfid, "vanished")
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP}:
                return ItemResult(item.gfid, "vanished")
            code = "permission" if error.errno in {errno.EACCES, errno.EPERM} else "io"
            message = f"cannot read {os.fsdecode(item.path)}: {error.strerror}"
            return ItemResult(item.gfid, "error", code, message)

    @contextmanager
    def _sources(self, items: list[FileItem]) -> Iterator[bytes]:
        """A private directory with a link to each file's real path, removed afterwards.

        Real paths, since rsync takes /proc/PID/fd/N by its text.
        """
        with tempfile.TemporaryDirectory(prefix="seamark-") as directory:
            sources = os.fsencode(directory)
            for item in items:
                os.symlink(
                    os.path.join(self._volume.root, item.path), os.path.join(sources, name_of(item.gfid))
                )
            yield sources

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
        self, unit: str, before: dict[bytes, tuple[FileItem, Stat]], failures: dict[bytes, Failure]
    ) -> list[ItemResult]:
        """Look again, commit what arrived, and say what became of each."""
        results: list[ItemResult] = []
        rows: list[list[Any]] = []
        for gfid, (item, old) in before.items():
            failure = failures.get(gfid)
            look = self._look(item)
            if isinstance(look, ItemResult):
                # Renamed or removed meanwhile: what was read by that path may be another file.
                results.append(look)
            elif failure is not None and failure.code == "changed":
                results.append(ItemResult(gfid, "changed", message=failure.message))
            elif failure is not None:
                vanished = failure.code == "vanished"
                results.append(ItemResult(gfid, "vanished" if vanished else "error", *failure))
            else:
                new, xattrs = look
                still = (new.ino, new.ctime_ns, new.size) == (old.ino, old.ctime_ns, old.size)
                rows.append(
                    meta_row(gfid, new, new.size, settled(new.ctime_ns) if still else 0, xattrs, item.ticket)
                )
                results.append(
                    ItemResult(
                        gfid,
                        "ok" if still else "changed",
                        bytes_sent=self._sent.get(gfid, 0),
                        ctime_ns=new.ctime_ns,
                    )
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
