"""Content by our own frames into the receiver that stays up: no process and no round trip per file.

Small files travel many to a frame, large ones in pieces that resume where an earlier try stopped,
holes are not sent. Files that may be right already are compared by digest before anything is sent.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections import deque
from contextlib import suppress
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from replication.transfer.delta import Shifted, send_blocks
from replication.transfer.growing import wait_while_written
from replication.transfer.item import FileItem, ItemResult, unreadable
from replication.transfer.pieces import data_pieces, read_pieces
from replication.volume.directory import VanishedError, settled
from replication.volume.handle import Stat, open_beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from replication.remote.client import SecondaryClient
    from replication.volume.directory import DirectoryVolume

SMALL = 1 << 20  # bytes; below, whole files travel together in one frame
_FRAME_BYTES = 1 << 20
_FRAME_FILES = 256
_COMPARE_BYTES = 64 << 20  # read at the far end for one answer
BUSY_S = 0.2  # between asking whether another worker is done with a file
_UNKNOWN, _UNDRESSED = -1, -2  # in the place of tickets, see SecondaryClient.wanted
_WINDOW = 16  # frames under way before the oldest answer is waited for

_VANISHED = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP}


def meta_row(
    gfid: bytes, stat: Stat, size: int, ctime_ns: int, xattrs: dict[str, str], ticket: int
) -> list[Any]:
    """The row with which the receiver commits a file: see docs/formats.md."""
    return [
        gfid.hex(), size, stat.mode, stat.uid, stat.gid, stat.mtime_ns, stat.atime_ns, ctime_ns, stat.ino, xattrs,
        None, ticket,
    ]  # fmt: skip


class _Busy(Exception):
    """Another worker sends a file."""


class _Sent(NamedTuple):
    """``still``: it did not change while it was read. ``size``: bytes; ``ctime_ns``, ``xattrs``: as it was read."""

    still: bool
    size: int
    ctime_ns: int
    xattrs: dict[str, str]


class StreamSender:
    """Sends files of one volume over one client; a use of ``send`` is one data unit."""

    def __init__(
        self,
        volume: DirectoryVolume,
        client: SecondaryClient,
        *,
        compress: bool,
        progress: Callable[[int, int], None] = lambda _files, _bytes: None,
        rsync_next: bool = False,
    ) -> None:
        """``rsync_next``: what a delta by blocks is not good for is left in ``left``, instead of being sent."""
        self._volume = volume
        self._client = client
        self._compress = compress
        self._progress = progress
        self._rsync_next = rsync_next
        self.left: list[FileItem] = []
        self._under_way: deque[tuple[Future[Any], dict[str, _Sent]]] = deque()
        self._results: list[ItemResult] = []
        self._rows: list[list[Any]] = []
        self._blobs: list[bytes] = []
        self._sent: dict[str, _Sent] = {}
        self._bytes = 0

    def send(self, items: list[FileItem]) -> list[ItemResult]:
        """Send every item; one result for each. Raises LinkLost, SecondaryError, and VolumeAway for the whole unit."""
        self._results, self.left = [], []
        differ = {row.gfid for row in self._compare([item for item in items if item.how == "compare"])}
        wanted = [item for item in items if item.how != "compare" or item.gfid in differ]
        for item, fd, stat in self._open(wanted):
            try:
                self._send_one(item, fd, stat)
            except OSError as error:
                self._fail(item, error)
            finally:
                os.close(fd)
        self._flush()
        self._drain(0)
        return self._results

    def recheck(self, items: list[FileItem]) -> list[ItemResult]:
        """Compare again, and set metadata where the content is the same; nothing is sent.

        "changed": the content is another by now, which a later record or scan sees.
        """
        self._results = []
        differ = self._compare(items)
        return self._results + [ItemResult(item.gfid, "changed") for item in differ]

    # ---- opening

    def _open(self, items: list[FileItem]) -> Iterator[tuple[FileItem, int, Stat]]:
        for directory, group in groupby(items, key=lambda item: os.path.dirname(item.path)):
            members = list(group)
            try:
                dir_fd = open_beneath(self._volume.root_fd, directory, os.O_PATH | os.O_DIRECTORY)
            except OSError as error:
                for item in members:
                    self._fail(item, error)
                continue
            try:
                for item in members:
                    try:
                        fd, stat = self._volume.open_file(
                            dir_fd, os.path.basename(item.path), item.observed, item.gfid
                        )
                    except VanishedError:
                        self._results.append(ItemResult(item.gfid, "vanished"))
                        continue
                    except OSError as error:
                        self._fail(item, error)
                        continue
                    yield item, fd, stat
            finally:
                os.close(dir_fd)

    def _fail(self, item: FileItem, error: OSError) -> None:
        if error.errno in _VANISHED:
            self._results.append(ItemResult(item.gfid, "vanished"))
            return
        self._results.append(unreadable(self._volume, item, error))

    # ---- sending

    def _send_one(self, item: FileItem, fd: int, stat: Stat) -> None:
        sparse = stat.blocks * 512 < stat.size
        if stat.size > SMALL or (sparse and stat.size > 4096):
            self._flush()
            self._drain(0)
            self._send_whole_or_changed(item, fd, stat)
            return
        content = _read_all(fd, stat.size)
        xattrs = self._volume.xattrs(fd)
        after = self._volume.stat(fd)
        still = after.ctime_ns == stat.ctime_ns and len(content) == stat.size
        row = meta_row(
            item.gfid, after, len(content), settled(after.ctime_ns) if still else 0, xattrs, item.ticket
        )
        self._rows.append(row)
        self._blobs.append(content)
        self._sent[row[0]] = _Sent(still, len(content), after.ctime_ns, xattrs)
        self._bytes += len(content)
        if self._bytes >= _FRAME_BYTES or len(self._rows) >= _FRAME_FILES:
            self._flush()

    def _send_whole_or_changed(self, item: FileItem, fd: int, stat: Stat) -> None:
        if wait_while_written(self._volume, item, fd, stat, self._progress):
            self._send_as_wanted(item, fd)
            return
        try:
            self._send_large_file(item, fd, stat)
        except _Busy:
            self._send_as_wanted(item._replace(how="data"), fd)

    def _send_as_wanted(self, item: FileItem, fd: int) -> None:
        """After a while, in which it was looked at again, or another worker has sent it."""
        while True:
            (ticket,) = self._client.wanted([item.gfid])
            if ticket == _UNDRESSED:
                # Who sent it sees the primary from elsewhere, and knows nothing of its metadata.
                self._results += [ItemResult(other.gfid, "changed") for other in self._compare([item])]
                return
            if ticket <= 0:
                self._results.append(ItemResult(item.gfid, "ok" if ticket != _UNKNOWN else "vanished"))
                self._progress(1, 0)
                return
            now = item._replace(ticket=max(ticket, item.ticket))
            try:
                self._send_large_file(now, fd, self._volume.stat(fd))
                return
            except _Busy:
                item = item._replace(how="data")

    def _send_large_file(self, item: FileItem, fd: int, stat: Stat) -> None:
        try:
            if item.how == "new":
                self._send_large(item, fd, stat)
            else:
                self._send_changed(item, fd, stat, sparse=stat.blocks * 512 < stat.size)
        except _Busy:
            raise
        except Exception:
            # Or nobody else could send it as long as this connection lasts.
            with suppress(LinkLost):
                self._client.submit("file_leave", gfid=item.gfid.hex())
            raise

    def _flush(self) -> None:
        if not self._rows:
            return
        future = self._client.submit_data(self._rows, self._blobs, compress=self._compress)
        self._under_way.append((future, self._sent))
        self._rows, self._blobs, self._sent, self._bytes = [], [], {}, 0
        self._drain(_WINDOW)

    def _drain(self, leave: int) -> None:
        while len(self._under_way) > leave:
            future, sent = self._under_way.popleft()
            failed = {gfid: (code, message) for gfid, code, message in future.result().header["errors"]}
            self._results += [_result(gfid, failed.get(gfid), was) for gfid, was in sent.items()]
            self._progress(len(sent), sum(was.size for was in sent.values()))

    def _begin_large(self, gfid: str, size: int, version: str) -> int:
        """Where to start. Raises _Busy, after a moment, while another worker sends the same file; SecondaryError."""
        try:
            header = self._client.call("file_begin", gfid=gfid, size=size, version=version).header
        except SecondaryError as error:
            if error.code != "busy":
                raise
            self._progress(0, 0)
            time.sleep(BUSY_S)
            raise _Busy from None
        offset: int = header["offset"]
        return offset

    def _send_changed(self, item: FileItem, fd: int, stat: Stat, *, sparse: bool) -> None:
        """A large file of which another version is there. (A hole is no block: such files go whole, or by rsync.)"""
        gfid = item.gfid.hex()
        if sparse and not self._rsync_next:
            self._send_large(item, fd, stat)
            return
        try:
            if sparse:
                raise Shifted
            self._begin_large(gfid, stat.size, "delta")
            sent = send_blocks(
                self._client, gfid, fd, stat.size,
                compress=self._compress, whatever=not self._rsync_next, progress=self._progress,
            )  # fmt: skip
        except Shifted:
            self.left.append(item)
        except SecondaryError as error:
            if error.code != "no-space" or not self._rsync_next:
                raise
            self.left.append(item)  # rsync can do without a second copy
        else:
            self._end_large(item, fd, stat, sent)

    def _send_large(self, item: FileItem, fd: int, stat: Stat) -> None:
        gfid = item.gfid.hex()
        # A change could still hide behind a young ctime: what was sent of that is not gone on with.
        since = settled(stat.ctime_ns) or time.time_ns()
        version = f"{stat.ino:x}-{since:x}-{stat.size:x}"
        offset = self._begin_large(gfid, stat.size, version)
        pieces: deque[Future[Any]] = deque()
        sent = 0
        if self._volume.tells_holes:
            content = data_pieces(fd, offset, stat.size)
        else:
            content = read_pieces(fd, offset, stat.size, sparse=stat.blocks * 512 < stat.size)
        for start, piece in content:
            packed = zlib.compress(piece, 1) if self._compress else piece
            z = len(packed) < len(piece)
            pieces.append(
                self._client.submit("file_data", packed if z else piece, gfid=gfid, offset=start, z=z)
            )
            sent += len(piece)
            while len(pieces) > _WINDOW:
                pieces.popleft().result()
            self._progress(0, len(piece))
        for future in pieces:
            future.result()
        self._end_large(item, fd, stat, sent)

    def _end_large(self, item: FileItem, fd: int, stat: Stat, sent: int) -> None:
        xattrs = self._volume.xattrs(fd)
        after = self._volume.stat(fd)
        still = after.ctime_ns == stat.ctime_ns
        row = meta_row(
            item.gfid, after, stat.size, settled(after.ctime_ns) if still else 0, xattrs, item.ticket
        )
        errors = self._client.call("file_end", gfid=row[0], item=row, digest=None).header["errors"]
        failed = (errors[0][1], errors[0][2]) if errors else None
        self._results.append(_result(row[0], failed, _Sent(still, sent, after.ctime_ns, xattrs)))
        self._progress(1, 0)

    # ---- comparing

    def _compare(self, items: list[FileItem]) -> list[FileItem]:
        """Ask which of these really differ; those that do not are made clean on the secondary."""
        differ: list[FileItem] = []
        rows: list[list[Any]] = []
        asked: dict[str, tuple[FileItem, _Sent]] = {}

        def ask() -> None:
            if not rows:
                return
            header = self._client.call("compare", items=list(rows)).header
            failed = {gfid: (code, message) for gfid, code, message in header["errors"]}
            different = set(header["differ"])
            for gfid, (item, was) in asked.items():
                if gfid in different:
                    differ.append(item)
                else:
                    self._results.append(_result(gfid, failed.get(gfid), was))
            self._progress(len(asked) - len(different), 0)
            rows.clear()
            asked.clear()

        amount = 0
        for item, fd, stat in self._open(items):
            try:
                digest = _digest(fd)
                xattrs = self._volume.xattrs(fd)
                after = self._volume.stat(fd)
            except OSError as error:
                self._fail(item, error)
                continue
            finally:
                os.close(fd)
            still = after.ctime_ns == stat.ctime_ns
            row = meta_row(
                item.gfid, after, after.size, settled(after.ctime_ns) if still else 0, xattrs, item.ticket
            )
            rows.append([row[0], after.size, digest, row])
            amount += after.size
            asked[row[0]] = (item, _Sent(still, 0, after.ctime_ns, xattrs))
            self._progress(0, 0)
            if len(rows) >= _FRAME_FILES or amount >= _COMPARE_BYTES:
                ask()
                amount = 0
        ask()
        return differ


def _result(gfid: str, failed: tuple[str, str] | None, was: _Sent) -> ItemResult:
    if failed is None:
        status: Literal["ok", "changed"] = "ok" if was.still else "changed"
        return ItemResult(
            bytes.fromhex(gfid), status, bytes_sent=was.size, ctime_ns=was.ctime_ns, xattrs=was.xattrs
        )
    if failed[0] == "not-found":
        return ItemResult(bytes.fromhex(gfid), "vanished")
    return ItemResult(bytes.fromhex(gfid), "error", failed[0], failed[1])


def _read_all(fd: int, size: int) -> bytes:
    """The first ``size`` bytes, fewer if the file is shorter by now."""
    content = os.read(fd, size) if size else b""
    while len(content) < size:
        more = os.read(fd, size - len(content))
        if not more:
            break
        content += more
    return content


def _digest(fd: int) -> str:
    digest = blake2b(digest_size=32)
    while piece := os.read(fd, 1 << 20):
        digest.update(piece)
    return digest.hexdigest()
