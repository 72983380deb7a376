"""The two ends of a comparison, as a unit sees them: rows here, rows there, contents of large files in pieces."""

from __future__ import annotations

import errno
import os
from collections import deque
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.secondary.inspection import PIECE, Row, digest_range, open_to_read, row_from, row_of
from replication.secondary.verify import HASHES, hashing
from replication.verify.compare import Difference, difference
from replication.volume.directory import RESERVED, VanishedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from replication.remote.answers import Reply
    from replication.remote.client import SecondaryClient
    from replication.secondary.filters import Filters
    from replication.secondary.inspection import Manner
    from replication.volume.directory import DirectoryVolume

_AHEAD = 2  # pieces that the far side digests while we do


class Ends(NamedTuple):
    """Where to look. ``alive``: called now and then, while a unit is at work; ``min_age_ns``: of what is compared."""

    volume: DirectoryVolume
    client: SecondaryClient
    manner: Manner
    filters: Filters
    alive: Callable[[], object] = lambda: None
    changed_before_ns: int = 1 << 63

    def ask(self, parts: list[dict[str, Any]], *, rows: bool = False) -> Future[Reply]:
        """Have the far side inspect parts of directories."""
        return self.client.submit("inspect", manner=self.manner._asdict(), parts=parts, rows=rows)

    def row(self, dir_fd: int, name: bytes) -> Row | None:
        """What ``name`` is in a directory of the primary; None: nothing."""
        row = row_of(dir_fd, name, self.manner)
        if row is not None and row.kind == "d" and not row.error:
            try:
                self.volume.believe_directory()
            except OSError as error:
                return row._replace(error=error.errno or errno.EIO)
        return row

    def _in_pieces(self, dir_fd: int, path: bytes, row: Row) -> str:
        """Compare a large file piece by piece, both ends at once: a digest of all of it; empty if it differs."""
        whole = blake2b(digest_size=32)
        fd = open_to_read(dir_fd, row.name)
        asked: deque[tuple[Future[Reply], int]] = deque()
        offsets = iter(range(0, row.size, PIECE))
        try:
            while True:
                while len(asked) < _AHEAD and (offset := next(offsets, None)) is not None:
                    asked.append((self._ask_piece(path, offset), offset))
                if not asked:
                    return whole.hexdigest()
                future, offset = asked.popleft()
                mine = digest_range(fd, offset, PIECE, self.manner.hash)
                self.alive()
                if future.result().header["digest"] != mine:
                    return ""
                whole.update(mine.encode())
        finally:
            os.close(fd)

    def _ask_piece(self, path: bytes, offset: int) -> Future[Reply]:
        return self.client.submit(
            "pieces", path=os.fsdecode(path), offset=offset, length=PIECE, hash=self.manner.hash
        )

    def compare(
        self, dir_fd: int | None, directory: bytes, here: Row | None, there: Row | None
    ) -> tuple[Difference | None, str, Row | None]:
        """One name, with its content, also if that is large: what differs (None: nothing), and the row as it is here."""
        kind, detail = difference(here, there)
        if here is None or dir_fd is None or kind not in (None, Difference.META):
            return kind, detail, here
        if not (self.manner.content and here.in_pieces):
            return kind, detail, here
        try:
            content = self._in_pieces(dir_fd, os.path.join(directory, here.name), here)
        except OSError as error:
            return Difference.UNREADABLE, f"on the primary: {error.strerror}", here
        if content:
            return kind, detail, here._replace(content=content)
        return Difference.CONTENT, "; ".join(["the content differs", *filter(None, [detail])]), here

    def left_out(self, directory: bytes, name: bytes, *, is_dir: bool) -> bool:
        """Whether the session's filters leave a name out."""
        return bool(self.filters) and self.filters.excludes(os.path.join(directory, name), is_dir)


def fastest_hash(client: SecondaryClient) -> str:
    """The hash of which the slower end takes least time. Both have these in their standard library."""
    theirs, mine = client.call("hashing").header["ns"], hashing(None, {})["ns"]
    return min(HASHES, key=lambda name: max(theirs[name], mine[name]))


def rows_of(reply: Reply) -> list[dict[bytes, Row] | int | None]:
    """Rows by name of each part that was asked for; None: no such directory; a number: an errno."""
    found: list[dict[bytes, Row] | int | None] = []
    for part in reply.header["parts"]:
        if part is None or "errno" in part:
            found.append(None if part is None else int(part["errno"]))
        else:
            found.append({row.name: row for row in map(row_from, part["rows"])})
    return found


def open_directory(volume: DirectoryVolume, path: bytes) -> int | None:
    """A directory of the primary as it is now; None: there is none. Raises OSError."""
    try:
        return volume.open_dir_unchecked(path)
    except VanishedError:
        return None


__all__ = ["RESERVED", "Ends", "fastest_hash", "open_directory", "rows_of"]
