"""Talking to a secondary agent: pipelined requests, answers in order, one client for many threads."""

from __future__ import annotations

import itertools
import json
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, BinaryIO

from replication.errors import SeamarkError
from replication.observation import Listing
from replication.remote.answers import Observed, Reply, SecondaryError, Whereabouts
from replication.remote.encoding import encode_listing
from replication.remote.errors import LinkLost
from replication.remote.outbox import Outbox
from replication.remote.packing import packed
from replication.secondary.protocol import MAX_HEADER, MAX_PAYLOAD

PROTOCOL = 4
WINDOW = 32  # requests under way on one link
_LENGTHS = struct.Struct(">II")
_dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def _path(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


class SecondaryClient:
    """One link to one agent. Every method may be called from any thread; ``submit`` blocks while WINDOW are under way.

    Raises SecondaryError for what the agent says, LinkLost once the link is dead.
    """

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader = reader
        self._outbox = Outbox(writer, self._cannot_write)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(WINDOW)
        self._waiting: deque[tuple[int, Future[Reply], type | None]] = deque()
        self._dead: SeamarkError | None = None
        self._thread = threading.Thread(target=self._read, name="secondary-answers", daemon=True)
        self._thread.start()

    def limit(self, pace: Callable[[int], bool]) -> None:
        """Have ``pace`` say when so many bytes may be sent; see Outbox."""
        self._outbox.pace = pace

    # ---- requests; each frame is whole, and in the order in which its answer is awaited

    def submit(self, op: str, payload: bytes = b"", **args: Any) -> Future[Any]:
        """Send a request; the future gives its Reply."""
        return self._submit(op, payload, args, None)

    def call(self, op: str, payload: bytes = b"", **args: Any) -> Reply:
        """Send a request and wait for its answer."""
        reply: Reply = self.submit(op, payload, **args).result()
        return reply

    def _submit(self, op: str, payload: bytes, args: dict[str, Any], kind: type | None) -> Future[Any]:
        future: Future[Any] = Future()
        self._room.acquire()
        number = next(self._ids)
        header = _dumps({"id": number, "op": op, **args}).encode()
        frame = b"".join((_LENGTHS.pack(len(header), len(payload)), header, payload))
        self._outbox.wait_for_room()
        with self._lock:
            if self._dead is not None:
                self._room.release()
                raise self._dead
            self._waiting.append((number, future, kind))
            self._outbox.put(frame)
        return future

    def _cannot_write(self, error: Exception) -> None:
        self._die(error if isinstance(error, SeamarkError) else LinkLost(f"link to the secondary: {error}"))

    def _die(self, error: SeamarkError) -> None:
        """Nothing more is sent, and nobody waits for an answer that will not come."""
        with self._lock:
            if self._dead is None:
                self._dead = error
        self._outbox.close()
        self._fail_all(error)

    def finish(self, op: str, turn: Callable[[], object] = lambda: None, **args: Any) -> dict[str, Any]:
        """A request that is done some seconds at a time: ask until it is. ``turn`` is called after each of them."""
        while not (header := self.call(op, **args).header)["done"]:
            turn()
        return header

    # ---- answers

    def _read(self) -> None:
        error: SeamarkError
        try:
            while True:
                reply = self._read_one()
                if reply is None:
                    error = LinkLost("the secondary agent ended the connection")
                    break
                self._resolve(reply)
        except SeamarkError as lost:
            error = lost
        except Exception as broken:  # whatever the stream raises ends the link, and nobody may wait for ever
            error = LinkLost(f"link to the secondary: {broken}")
        self._die(error)

    def _read_one(self) -> Reply | None:
        lengths = self._exactly(8)
        if lengths is None:
            return None
        header_size, payload_size = _LENGTHS.unpack(lengths)
        if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
            raise LinkLost("the secondary agent sent what is no answer")
        header = self._exactly(header_size)
        payload = self._exactly(payload_size) if payload_size else b""
        if header is None or payload is None:
            raise LinkLost("the secondary agent ended in the middle of an answer")
        return Reply(json.loads(header), payload)

    def _exactly(self, size: int) -> bytes | None:
        data = self._reader.read(size)
        while data and len(data) < size:
            more = self._reader.read(size - len(data))
            if not more:
                break
            data += more
        if not data:
            return None
        if len(data) < size:
            raise LinkLost("the secondary agent ended in the middle of an answer")
        return data

    def _resolve(self, reply: Reply) -> None:
        number = reply.header.get("id")
        if reply.header.get("alive"):
            return  # it is at what was asked for
        if number is None:
            raise SecondaryError(reply.header.get("error", "protocol"), reply.header.get("message", "?"))
        if (
            not self._waiting or self._waiting[0][0] != number
        ):  # who waits stays in line, to hear that the link is lost
            raise LinkLost(f"answer {str(number)[:20]} came, which is not due")
        _, future, kind = self._waiting.popleft()
        self._room.release()
        if not reply.header.get("ok"):
            h = reply.header
            future.set_exception(SecondaryError(h["error"], h["message"], h.get("path")))
        else:
            future.set_result(kind.of(reply.header) if kind is not None else reply)  # type: ignore[attr-defined]

    def _fail_all(self, error: SeamarkError) -> None:
        while True:
            try:
                _, future, _ = self._waiting.popleft()
            except IndexError:
                return
            self._room.release()
            try:
                future.set_exception(error)
            except InvalidStateError:
                continue

    @property
    def alive(self) -> bool:
        return self._dead is None

    def close(self) -> None:
        """Close our side; the agent ends when it has read all."""
        with self._lock:
            if self._dead is None:
                self._dead = LinkLost("this end closed the link")
        self._outbox.close()
        if not self._thread.is_alive():
            try:
                self._reader.close()
            except (OSError, SeamarkError):
                pass

    # ---- operations

    def hello(
        self, *, session: str, volume: str, epoch: int, adopt: bool = False, create: bool = False, read_only: bool = False,
        dry: bool = False, filled: bool = False, filters: Sequence[str] = (), holder: str | None = None,
        takes: int | None = None, log: str = "error", content_only: bool = False, of: dict[str, Any] | None = None,
        lineage: Sequence[str] = (), believes_ns: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        """Open the secondary. Gives protocol, boot_id, python, uid, fs, index, entries, free_bytes, rsync, tar.

        ``dry``: a root that is not there, but could be made, is no error: ``missing`` says so.
        ``filled``: this session has filled a secondary before, so one that is empty is not mounted.
        ``filters``: what is left out. ``log``: how much it says of what it does. ``holder``: who asks; an epoch of
        somebody else's is taken over only where ``takes`` says that one. ``content_only``: what we say else of a file
        is not the primary's truth. ``of``: who replicates to there, for the day of a promotion. ``lineage``: the volumes
        that all of it comes from (secondary/lineage.py). ``believes_ns``: another replication had brought everything to
        there by then; 0: none had.
        """
        return self.call(
            "hello", protocol=PROTOCOL, session=session, volume=volume, epoch=epoch, adopt=adopt, create=create,
            read_only=read_only, dry=dry, filled=filled, filters=filters, holder=holder, takes=takes, log=log,
            content_only=content_only, of=of, lineage=lineage, believes_ns=believes_ns,
        ).header  # fmt: skip

    def survey(self, *, may_try: bool = True) -> dict[str, Any]:
        """What host, user and file system there can do (secondary/survey.py); needs no hello."""
        return self.call("survey", may_try=may_try).header

    def belongs(self) -> dict[str, Any]:
        """``owner``: whose secondary this is (null: nobody's), ``settings``: the session's, as a file has them; needs no hello."""
        return self.call("belongs").header

    def promotion(self, **said: Any) -> dict[str, Any]:
        """What would be lost, or the promotion itself (secondary/promotion.py); needs no hello."""
        return self.finish("promotion", **said)

    def past(self, **said: Any) -> dict[str, Any]:
        """``items``: the snapshots of a root, promoted or not; or one of them is removed (secondary/snapshots.py); needs no hello."""
        return self.finish("past", **said)

    def submit_observe(
        self,
        listings: Sequence[Listing],
        *,
        position: int | None = None,
        after: int | None = None,
        crawl: str | None = None,
        limbo_until: int,
        final: bool = True,
        content: Sequence[tuple[str, dict[str, str], bytes]] = (),
        compress: bool = False,
        deletes: dict[str, Any] | None = None,
    ) -> Future[Observed]:
        """Send observations; the future gives an Observed.

        ``after``: the position that was sent before this one (by default the one before it).
        ``limbo_until``: the stamp for `purge`. ``content``: gfid, xattrs and bytes of files as observed.
        ``deletes``: the rule of deletions (secondary/held.py), if there is one.
        """
        args: dict[str, Any] = {
            "position": position, "crawl": crawl, "limbo_until": limbo_until, "final": final,
            "listings": [encode_listing(listing) for listing in listings],
        }  # fmt: skip
        if after is not None:
            args["after"] = after
        if deletes is not None:
            args["deletes"] = deletes
        payload = b"".join(row[2] for row in content)
        if content:
            args["content"] = [row[:2] for row in content]
            if compress and (small := packed(payload)) is not None:
                args["z"], payload = True, small
        return self._submit("observe", payload, args, Observed)

    def observe(self, listings: Sequence[Listing], **args: Any) -> Observed:
        """submit_observe, and wait."""
        return self.submit_observe(listings, **args).result()

    def submit_data(
        self, items: list[list[Any]], blobs: Sequence[bytes], *, compress: bool = False
    ) -> Future[Reply]:  # fmt: skip
        """Send whole files: rows as in docs/formats.md, and their contents in the same order."""
        payload = b"".join(blobs)
        small = packed(payload) if compress else None
        return self.submit("data", payload if small is None else small, z=small is not None, items=items)

    def data(
        self, items: list[list[Any]], blobs: Sequence[bytes], *, compress: bool = False
    ) -> list[list[str]]:
        """submit_data, and wait: [gfid, code, message] of each file that failed."""
        errors: list[list[str]] = self.submit_data(items, blobs, compress=compress).result().header["errors"]
        return errors

    def metadata(self, items: list[list[Any]]) -> list[list[str]]:
        """Owner, mode, times, attributes: [gfid, mode, uid, gid, mtime, atime, ctime, ino, xattrs] each."""
        errors: list[list[str]] = self.call("metadata", items=items).header["errors"]
        return errors

    def digests(self, directories: Sequence[tuple[bytes, bytes]]) -> list[int]:
        """Positions of the directories whose digest differs."""
        return self.differing_of(self.submit_differing(directories).result())[0]

    def submit_differing(self, directories: Sequence[tuple[bytes, bytes]]) -> Future[Reply]:
        """Ask which digests differ; see differing_of."""
        return self.submit("digests", dirs=[(g.hex(), d.hex()) for g, d in directories])

    @staticmethod
    def differing_of(reply: Reply) -> tuple[list[int], set[int]]:
        """Positions of the directories whose digest differs, and of those among them that hold nothing there."""
        return reply.header["differ"], set(reply.header["empty"])

    def names(self, gfids: Iterable[bytes]) -> dict[bytes, list[bytes]]:
        """Current paths of each gfid on the secondary, relative to its root."""
        found = self.call("names", gfids=[g.hex() for g in gfids]).header["names"]
        return {bytes.fromhex(g): [os.fsencode(p) for p in paths] for g, paths in found}

    def wanted(self, gfids: Iterable[bytes]) -> list[int]:
        """The look that wants each file's content: 0 nothing is wanted, -1 it is unknown, -2 metadata is wanted."""
        found: list[int] = self.call("wanted", gfids=[g.hex() for g in gfids]).header["wanted"]
        return found

    def submit_unlist(self, gfids: Iterable[bytes], *, doubt: bool = False) -> Future[Reply]:
        """Have these directories, and all below them, listed completely again; ``doubt``: and compared, whatever is known of them."""
        return self.submit("unlist", gfids=[g.hex() for g in gfids], doubt=doubt)

    def unlist(self, gfids: Iterable[bytes], *, doubt: bool = False) -> None:
        """submit_unlist, and wait."""
        self.submit_unlist(gfids, doubt=doubt).result()

    def doubt(self, path: bytes, *, count: bool = False) -> int | None:
        """Have all at this path and below compared again; how much is left to be. None: the path is not known there."""
        left: int | None = self.call(
            "doubt", path=path.decode("utf-8", "surrogateescape"), count=count
        ).header["left"]
        return left

    def dirty(
        self, after: str | None = None, limit: int = 1000, *, undressed: bool = False, upto: int = 0
    ) -> tuple[list[tuple[bytes, bytes]], str | None]:
        """Files whose content is wanted: (gfid, path), and where to go on (None: that was all).

        ``undressed``: what lacks nothing but its metadata, directories too. ``upto``: without what was seen to be gone until
        then, and is held.
        """
        header = self.call("dirty", after=after, limit=limit, undressed=undressed, upto=upto).header
        return [(bytes.fromhex(g), os.fsencode(p)) for g, p in header["items"]], header["next"]

    def unlisted(
        self, after: str | None = None, limit: int = 1000, *, upto: int = 0, tops: bool = False
    ) -> tuple[list[tuple[bytes, bytes | None]], str | None]:
        """Directories that somebody has to list: (gfid, path or None for one without a name), and where to go on, as above.

        ``upto``: without what was seen to be gone until then, and is held. ``tops``: without those in such ones.
        """
        header = self.call("unlisted", after=after, limit=limit, upto=upto, tops=tops).header
        return [(bytes.fromhex(g), _path(p)) for g, p in header["items"]], header["next"]

    def whereabouts(self, gfids: Iterable[bytes], *, upto: int = 0) -> dict[bytes, Whereabouts]:
        """What the secondary knows of these directories; ``upto`` as above."""
        found = self.call("whereabouts", gfids=[g.hex() for g in gfids], upto=upto).header["found"]
        return {bytes.fromhex(g): Whereabouts(listed, _path(path)) for g, listed, path in found}

    def stage(self, unit: str, gfids: Iterable[bytes], *, in_place: bool | None = None) -> dict[str, Any]:
        """Prepare a unit of rsync or tar: path, basis (relative to the root), in_place, unknown (gfids in hex)."""
        return self.call("stage", unit=unit, gfids=[g.hex() for g in gfids], in_place=in_place).header

    def commit(self, unit: str, items: list[list[Any]]) -> list[list[str]]:
        """Place what an engine has written: [gfid, code, message] of each file that failed."""
        errors: list[list[str]] = self.call("commit", unit=unit, items=items).header["errors"]
        return errors

    def begin_crawl(self, crawl: str) -> bool:
        """True: the index is being rebuilt, and this crawl must see everything."""
        return bool(self.call("begin_crawl", crawl=crawl).header["rebuilding"])

    def end_crawl(self, crawl: str, *, rebuilt: bool = False) -> None:
        self.call("end_crawl", crawl=crawl, rebuilt=rebuilt)

    def purge(self, upto: int) -> int:
        """Delete what is in limbo with a stamp of at most ``upto``; how many objects it were."""
        return int(self.call("purge", upto=upto).header["removed"])

    def sync(self) -> dict[str, Any]:
        """Make all that was applied durable. Gives boot_id, free_bytes, gen, limbo (objects), held, since."""
        return self.call("sync").header

    def stat(self) -> dict[str, Any]:
        return self.call("stat").header

    def check(self, limit: int = 100) -> list[tuple[str, str]]:
        """Where index and tree of the secondary disagree: (path, what)."""
        return [(p, what) for p, what in self.call("check", limit=limit).header["differences"]]

    def ping(self) -> int:
        """The far side's clock, ns."""
        return int(self.call("ping").header["t"])
