"""One connection: follows bricks of one volume that this node's own glusterd has here, and tells what they record (wire.py)."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from replication.bricknode.wire import MAX_RECORDS, VERSION, Frames, encode
from replication.changelog.brickctimes import changed
from replication.changelog.brickfollow import FollowedBrick
from replication.changelog.brickplace import Place
from replication.changelog.inotify import Inotify
from replication.changelog.record import Kind, Record
from replication.errors import SeamarkError
from replication.gluster.glusterd import Brick, volume_info
from replication.secondary.protocol import AgentError, frame

_SILENT_S = 300.0  # who follows asks at least every few seconds
_STEP_S = 0.03  # of a search, before anything else is looked at
_MERGE_S = 0.02  # events come in crowds
_SETTLE_S = (
    0.025  # what is younger may change again without another ctime (see brickfollow.py), and is told twice
)
_KNOWN_S = 2.0  # what glusterd said
_AT_ONCE = 50_000  # records, before it is told how far they go


class Server:
    """Reads requests from ``source`` until its end, and answers on ``out``, which may take its time."""

    def __init__(self, volume: str, source: int, out: int) -> None:
        self._volume = volume
        self._source, self._out = source, out
        self._frames = Frames()
        self._inotify = Inotify()
        self._followed: dict[str, tuple[FollowedBrick, int]] = {}
        self._records: dict[str, list[Record]] = {}
        self._taken = 0
        self._searches: dict[str, tuple[int, Iterator[bytes]]] = {}
        self._distributed = False
        self._known: tuple[float, dict[str, Brick]] = (0.0, {})

    def serve(self) -> int:
        """Returns an exit status."""
        try:
            return self._serve()
        finally:
            for path in list(self._followed):
                self._forget(path)
            self._inotify.close()

    def _serve(self) -> int:
        heard = time.monotonic()
        while time.monotonic() < heard + _SILENT_S:
            wait_s = 0.0 if self._searches else _SILENT_S / 10
            ready, _, _ = select.select([self._source, self._inotify.fd], [], [], wait_s)
            if self._source in ready:
                data = os.read(self._source, 1 << 16)
                if not data:
                    return 0
                heard = time.monotonic()
                self._frames.add(data)
                while (got := self._frames.next()) is not None:
                    self._answer(got[0])
            if self._inotify.fd in ready:
                time.sleep(_MERGE_S)
                self._inotify.clear()
                self._poll()
            self._search()
        return 1

    def _answer(self, request: dict[str, Any]) -> None:
        """Raises AgentError, which ends the connection, for what is no request."""
        op = request.get("op")
        try:
            if op == "follow":
                self._follow(str(request["brick"]), request["place"])
            elif op == "forget":
                self._forget(str(request["brick"]))
            elif op == "round":
                self._round(int(request["n"]), bool(request["whole"]))
            elif op == "search":
                self._begin_search(request)
            elif op == "bricks":
                self._tell_bricks()
            else:
                raise AgentError("protocol", "not a request")
        except (KeyError, TypeError, ValueError) as error:
            raise AgentError("protocol", f"malformed request: {error}") from None

    # ---- bricks

    def _local(self) -> dict[str, Brick]:
        """What this node's own glusterd says is here. Raises SeamarkError."""
        asked, local = self._known
        if time.monotonic() > asked + _KNOWN_S:
            info = volume_info(self._volume)
            local = {brick.path: brick for brick in info.bricks if brick.local}
            self._distributed = len(info.sets) > 1
            self._known = time.monotonic(), local
        return local

    def _follow(self, path: str, place: Any) -> None:
        """No path is believed: it has to be that of a brick of this volume, here."""
        try:
            if path not in self._local():
                raise SeamarkError("it is no brick of this node")
            self._forget(path)
            brick = FollowedBrick(
                path,
                partial(self._take, path),
                partial(self._lost, path),
                partial(self._restarted, path),
                self._moved,
            )
            watch = self._inotify.watch(brick.tail.directory)
            resumed = place is not None and brick.tail.resume(Place.of_json(place))
            if not resumed:
                brick.tail.begin_at_end()
        except (OSError, SeamarkError) as error:
            said = error.message if isinstance(error, SeamarkError) else error.strerror
            self._tell({"brick": path, "error": said or str(error)})
            return
        self._followed[path] = brick, watch
        self._tell({"brick": path, "began": resumed, "place": brick.tail.place().as_json()})
        self._poll()

    def _forget(self, path: str) -> None:
        self._searches.pop(path, None)
        if path in self._followed:
            brick, watch = self._followed.pop(path)
            self._inotify.forget(watch)
            brick.tail.close()

    def _tell_bricks(self) -> None:
        try:
            local, error = self._local(), ""
        except SeamarkError as problem:
            local, error = {}, problem.message
        found = {}
        for path, brick in local.items():
            follower = FollowedBrick(path, lambda _: None, lambda *_: None, lambda _: None, lambda _: False)
            beat_ms = -1
            try:
                follower.tail.begin_at_end()
                beat_ms = _age_ms(follower)
            except OSError:
                pass
            recording = beat_ms >= 0 and follower.tail.is_recording()
            found[path] = {"recording": recording, "beat_ms": beat_ms, "arbiter": brick.arbiter}
        self._tell({"bricks": found, "version": VERSION, "error": error})

    # ---- recording

    def _take(self, path: str, record: Record) -> None:
        records = self._records.setdefault(path, [])
        records.append(record)
        self._taken += 1
        if len(records) >= MAX_RECORDS:
            self._flush(path)

    def _flush(self, path: str) -> None:
        if records := self._records.pop(path, None):
            self._followed[path][0].witness()
            self._tell({"brick": path, "records": len(records)}, encode(records))

    def _lost(self, path: str, reason: str, since_ns: int | None) -> None:
        self._flush(path)
        self._tell({"brick": path, "gap": reason, "ago_ns": _ago(since_ns)})

    def _moved(self, _gfid: bytes) -> bool:
        """What other nodes have is not known here."""
        return self._distributed

    def _restarted(self, path: str, since_ns: int | None) -> None:
        self._flush(path)
        self._tell({"brick": path, "restarted": True, "ago_ns": _ago(since_ns)})

    def _poll(self) -> dict[str, str]:
        """Tell what is recorded by now; of each brick why it cannot be read, if it cannot."""
        unread = {}
        for path, (brick, _) in self._followed.items():
            unread[path] = ""
            self._taken = 0
            try:
                while not brick.poll(lambda: self._taken >= _AT_ONCE):
                    brick.compare(whole=True)
                    self._flush(path)
                    self._tell({"brick": path, "place": brick.tail.place().as_json()})
                    self._taken = 0
            except OSError as error:
                unread[path] = error.strerror or str(error)
        if self._records:
            time.sleep(_SETTLE_S)
        for path in list(self._records):
            self._flush(path)
        return unread

    def _round(self, number: int, whole: bool) -> None:
        unread = self._poll()
        bricks = {}
        for path, (brick, _) in self._followed.items():
            compared = brick.compare(whole=whole)
            self._flush(path)
            beat_ms = -1
            try:
                beat_ms = _age_ms(brick)
            except OSError:
                pass
            bricks[path] = {
                "place": brick.tail.place().as_json(), "compared": compared, "beat_ms": beat_ms,
                "recording": brick.tail.is_recording(), "unread": unread[path], "uneasy": brick.uneasy,
            }  # fmt: skip
        self._tell({"round": number, "bricks": bricks})

    # ---- searching

    def _begin_search(self, request: dict[str, Any]) -> None:
        path = str(request["brick"])
        if path in self._followed:
            now_ns, ago_ns = time.time_ns(), request["ago_ns"]
            since_ns = None if ago_ns is None else now_ns - int(ago_ns)
            found = changed(path, since_ns, now_ns - int(request["unexplained_ago_ns"]))
            self._searches[path] = int(request["n"]), found

    def _search(self) -> None:
        for path, (number, found) in list(self._searches.items()):
            until = time.monotonic() + _STEP_S
            some: list[Record] = []
            ended = True
            try:
                for gfid in found:
                    if gfid:
                        some.append(Record(Kind.M | Kind.D, gfid, None, None))
                    if time.monotonic() > until or len(some) >= MAX_RECORDS:
                        ended = False
                        break
            except OSError as error:  # who follows it asks again
                self._forget(path)
                self._tell({"brick": path, "error": error.strerror or str(error), "unasked": True})
                continue
            if some:
                self._tell({"brick": path, "records": len(some), "search": number}, encode(some))
            if ended:
                del self._searches[path]
                self._tell({"brick": path, "searched": number})

    # ---- out

    def _tell(self, header: dict[str, Any], payload: bytes = b"") -> None:
        data = memoryview(frame(header, payload))
        while data:
            data = data[os.write(self._out, data) :]


def _ago(since_ns: int | None) -> int | None:
    return None if since_ns is None else time.time_ns() - since_ns


def _age_ms(brick: FollowedBrick) -> int:
    """Since the brick last rolled its changelog. Raises OSError."""
    return max(0, (time.time_ns() - brick.tail.beat_ns()) // 1_000_000)
