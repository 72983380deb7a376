"""What reads bytes of others, each as a function of any bytes that may raise nothing but what it says it does.

tests/fuzz/test_targets.py runs them over seeds and what hypothesis makes up; tests/fuzz/run.py under atheris.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import struct
import tempfile
import zlib
from pathlib import Path
from unittest import mock

from replication.bricknode import wire
from replication.changelog import segment
from replication.changelog.brickfollow import FollowedBrick
from replication.changelog.brickmembers import RemoteMember, RemoteNode
from replication.changelog.brickplace import Place
from replication.changelog.bricktail import BrickTail
from replication.changelog.glusterlog import parse_gluster
from replication.changelog.record import Kind, Record, SegmentDamaged
from replication.gluster.glusterd import Brick
from replication.secondary import gate as gates
from replication.secondary import observed, untar
from replication.secondary.protocol import AgentError, frame, read_frame, unpacked
from replication.transfer.item import decode_items, encode_items

UNIT = "/.seamark/staging/unit.ab"
_SESSION = "ab" * 16


def frames(data: bytes) -> None:
    """Frames, what is packed in them, and observations that they bring."""
    stream = io.BytesIO(data)
    with contextlib.suppress(AgentError):
        while (got := read_frame(stream)) is not None:
            header, payload = got
            with contextlib.suppress(AgentError):
                unpacked(header, payload)
            with contextlib.suppress(AgentError, ValueError, TypeError, IndexError, AttributeError, KeyError):
                _check(observed.parse(header.get("listings", [])))


def _check(listings) -> None:
    for listing in listings:
        for entry in listing.entries:
            name = entry[observed.NAME]
            assert name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name, entry
        assert len(listing.parent) == 16


def listings(data: bytes) -> None:
    """The same, in a frame that is whole."""
    frames(struct.pack(">II", len(data), 0) + data)


def segments(data: bytes) -> None:
    """A segment as it lies on the disk."""
    with contextlib.suppress(SegmentDamaged):
        list(segment.parse_segment("fuzzed", data).records)


def blocks(data: bytes) -> None:
    """A segment whose checksums are right, and what is in its blocks is not."""
    start = segment._HEADER.pack(segment.MAGIC, segment.VERSION, 0, 1, 2)
    made = start + segment._CRC.pack(zlib.crc32(start))
    stream = io.BytesIO(data)
    while len(head := stream.read(4)) == 4:
        payload = stream.read(head[1])
        made += (
            segment._block_header(b"DRZ"[head[0] % 3], payload, head[2] if head[3] % 2 else _likely(payload))
            + payload
        )
    with contextlib.suppress(SegmentDamaged):
        list(segment.parse_segment("fuzzed", made).records)


def _likely(payload: bytes) -> int:
    return max(1, len(payload) // 24)


def gluster(data: bytes) -> None:
    """A changelog of Gluster's."""
    with contextlib.suppress(SegmentDamaged):
        list(parse_gluster("fuzzed", data).records)


def tail(data: bytes) -> None:
    """A changelog that a brick writes in pieces and rolls, while it is followed; and what HTIME says is any bytes, too."""
    base = _root().parent / "brick"
    shutil.rmtree(base, ignore_errors=True)
    changelogs = base / ".glusterfs" / "changelogs"
    closed = changelogs / "2026" / "11" / "29"
    closed.mkdir(parents=True)
    (changelogs / "htime").mkdir()
    current, htime = changelogs / "CHANGELOG", changelogs / "htime" / "HTIME.1"
    current.touch()
    htime.touch()
    taken: list[Record] = []
    gaps: list[str] = []
    with mock.patch.object(BrickTail, "_current_htime", return_value="HTIME.1"):
        follower = FollowedBrick(
            str(base), taken.append, lambda reason, _: gaps.append(reason), lambda _: None, lambda _: False
        )
        follower.tail.begin_at_end()
        third = len(data) // 3
        for piece in (data[:third], data[third : 2 * third], data[2 * third :]):
            with open(current, "ab") as file:
                file.write(piece)
            assert follower.poll(lambda: False)
        current.rename(closed / "CHANGELOG.1796000000")
        current.touch()
        with open(htime, "ab") as file:
            file.write(data[-200:] + b"\0" + bytes(closed) + b"/CHANGELOG.1796000000\0")
        assert follower.poll(lambda: False)
        follower.compare(whole=True)
        assert Place.of_json(follower.tail.place().as_json()) == follower.tail.place()
        follower.tail.close()
    shutil.rmtree(base)
    with contextlib.suppress(SegmentDamaged):
        whole: list[Record] = []
        whole.extend(parse_gluster("fuzzed", data).records)
        assert taken[: len(whole)] == whole, (taken, whole)
        return
    assert gaps or not data, data


class _Heard:
    """Whoever follows bricks of other nodes."""

    def take(self, record: Record) -> None:
        if record.name is not None:
            assert (
                record.name not in (b"", b".", b"..") and b"/" not in record.name and b"\0" not in record.name
            )
        assert len(record.gfid or b"") == 16 and record.kinds

    def gap(self, reason: str) -> None:
        assert reason in ("damaged", "changelog off", "recorder")

    def lost(self, reason: str, since_ns) -> None:
        self.gap(reason)

    def restarted(self, member, since_ns) -> None:
        pass

    def began(self, member, *, resumed: bool) -> None:
        pass

    def searched(self, member) -> None:
        pass


def nodes(data: bytes) -> None:
    """What another node tells of its bricks."""
    node = RemoteNode("node", [], _Heard())
    member = RemoteMember(Brick("node", "/b", False, False), 0, None)
    node.members["/b"] = member
    node.link.up, node.link._next_at = True, float("inf")
    with contextlib.suppress(AgentError):
        node.link._came(data)
    node.round()
    node.pump(lambda: False)
    assert member.place is None or Place.of_json(member.place.as_json()) == member.place
    for brick in ("/b", "/other"):  # the same in a frame that is whole
        with contextlib.suppress(AgentError, KeyError, TypeError, ValueError):
            node._heed({"brick": brick, "records": 1}, data)


def items(data: bytes) -> None:
    """What a unit of the ledger is to send."""
    with contextlib.suppress(ValueError, zlib.error, TypeError):
        decode_items(data)


class Started(BaseException):
    """The gate would start this."""


_base: tempfile.TemporaryDirectory | None = None
# Written anew from what rsync(1) says these do: writing elsewhere, running something, reading elsewhere, links, devices.
_SAFE = re.compile(
    r"-[ISpz]+e\.[A-Za-z]*|--log-format=%i|--stats|--inplace|--no-W|--timeout=\d+|--bwlimit=\d+|--new-compress|--old-compress"
    r"|--compress-choice=[a-z0-9]+|--compress-level=\d+",
    re.ASCII,
)


def _root() -> Path:
    global _base
    if _base is None:
        _base = tempfile.TemporaryDirectory(prefix="fuzz")
        (Path(_base.name) / "root" / (UNIT + "/new")[1:]).mkdir(parents=True)
        (Path(_base.name) / "canary").write_text("untouched")
    return Path(_base.name) / "root"


def gate(data: bytes) -> None:
    """What a client asks of the forced command, after a few words that bring it near to something."""
    words = data.decode("utf-8", "surrogateescape").replace("\0", "")
    for text in (
        words,
        "rsync --server -ISpe.LsfxCIvu " + words,
        f"rsync --server -ISpe.LsfxCIvu {words} . {UNIT}/new/",
    ):
        _ask_gate(text)


def _ask_gate(text: str) -> None:
    root = _root()
    seen: list[list[bytes]] = []

    def start(_program, argv):
        seen.append(argv)
        raise Started

    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with (
            mock.patch.dict(os.environ, SSH_ORIGINAL_COMMAND=text), mock.patch.object(os, "execvp", start),
            mock.patch.object(gates.authorized, "revoke", side_effect=lambda session: seen.append([b"revoke"])),
            mock.patch.object(gates.untar, "main", lambda fd, kind: (os.close(fd), seen.append([b"untar", kind.encode()]), 0)[2]),
            mock.patch("replication.secondary.__main__.serve", lambda root: seen.append([b"serve", root]) or 0),
            contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Started),
        ):  # fmt: skip
            status = gates.gate(_SESSION, os.fsencode(root))
            assert status == gates.REFUSED_STATUS or seen or text.startswith("seamark-has "), (text, status)
        where = os.getcwd()
    finally:
        os.fchdir(here)
        os.close(here)
    for argv in seen:
        if argv[0] != b"rsync":
            assert argv[0] in (b"untar", b"serve", b"revoke"), argv
            continue
        assert Path(where).resolve() == (root / (UNIT + "/new")[1:]).resolve(), (text, where)
        _check_rsync([os.fsdecode(word) for word in argv], str(root.resolve()), text)


def _check_rsync(argv, root, text) -> None:
    assert argv[:2] == ["rsync", "--server"] and argv[-2:] == [".", "./"], (text, argv)
    rest = iter(argv[2:-2])
    for word in rest:
        if word in ("--copy-dest", "--partial-dir"):
            assert next(rest) in (f"{root}{UNIT}/basis", f"{root}/.seamark/staging/partial"), (text, argv)
        else:
            assert _SAFE.fullmatch(word), (text, argv)


def tar(data: bytes) -> None:
    """A tar stream that is unpacked into the directory of a unit."""
    new = _root() / (UNIT + "/new")[1:]
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            untar.unpack(io.BytesIO(data), fd)
    finally:
        os.close(fd)
    for entry in os.scandir(new):
        assert entry.is_file(follow_symlinks=False) and re.fullmatch(r"[0-9a-f]{32}", entry.name), entry
        os.unlink(entry)
    base = _root().parent
    assert sorted(os.listdir(base)) == ["canary", "root"]
    assert (base / "canary").read_text() == "untouched"


TARGETS = {
    f.__name__: f for f in (frames, listings, segments, blocks, gluster, tail, nodes, items, gate, tar)
}


def _tar_seed() -> bytes:
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, kind in (
            (("ab" * 16), tarfile.REGTYPE),
            ("../x", tarfile.REGTYPE),
            ("cd" * 16, tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "/etc", 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"abc"))
    return packed.getvalue()


def _segment_seed() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "s")
        writer = segment.SegmentWriter(path, 7, 1000)
        hint = segment.DirHint(b"handle", b"a/b")
        writer.append([segment.Place(b"g" * 16, hint, False, {b"name": 3, b"": 2})])
        writer.close(2000)
        return Path(path).read_bytes()


_OBSERVED = '["%s",true,0,true,[["name","' + "cd" * 16 + '",33188,0,0,1,2,0,3,4,5,6,null,2],["gone",null]]]'


def _changelogs() -> list[bytes]:
    """The beginnings of changelogs that bricks wrote, in both versions."""
    data = Path(__file__).parents[1] / "changelog" / "data"
    found = [path.read_bytes()[:5000] for path in sorted(data.glob("*CHANGELOG"))]
    return found + [each.replace(b"v1.2", b"v1.1") for each in found]


def _told() -> list[bytes]:
    place = ["HTIME.1", 9, 1, [[1, 2]], [3, 4], "boot"]
    records = wire.encode(
        [Record(Kind.E, b"g" * 16, b"p" * 16, b"name", True), Record(Kind.D, b"g" * 16, None, None)]
    )
    state = {"place": place, "beat_ms": 1, "compared": True, "recording": True, "unread": "", "uneasy": False}
    return [
        frame({"brick": "/b", "began": True, "place": place}) + frame({"brick": "/b", "records": 2}, records),
        frame({"round": 1, "bricks": {"/b": state}}), frame({"brick": "/b", "gap": "damaged"}) + frame({"brick": "/b", "place": place}), records,
        frame({"brick": "/b", "error": "no"}) + frame({"brick": "/b", "gap": "damaged", "ago_ns": 5}) + frame({"brick": "/b", "restarted": True, "ago_ns": 5}) + frame({"brick": "/b", "searched": 0}),
    ]  # fmt: skip


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with, which come to where it matters."""
    listing = ('{"id":1,"op":"observe","listings":[' + _OBSERVED % ("ab" * 16) + "]}").encode()
    found = {
        "frames": [frame({"id": 1, "op": "ping"}), frame({"id": 1, "z": 1}, zlib.compress(b"content" * 99)), b"\xff" * 8],
        "listings": [listing, b'{"listings":[[]]}', b"[" * 3000, b'{"a":' * 3000],
        "segments": [_segment_seed(), _segment_seed()[:-9]],
        "blocks": [b"\0\x20\1\1" + b"\0" * 32 + b"\1\x10\1\1" + b"\1" * 16, b"\2\x10\1\1" + b"\0" * 16],
        "gluster": _changelogs(),
        "tail": _changelogs(),
        "nodes": _told(),
        "items": [encode_items([]), b"x\x9c", zlib.compress(b"[[],[]]"), zlib.compress(b'[["a"],[["zz",0,"n","data",1]]]')],
        "gate": [
            f"--stats . {UNIT}/new/".encode(), b"--rsh=sh", b"--log-file=/tmp/x", b"-e sh", b"--write-batch=x", b"--files-from=/etc/passwd",
            b"--copy-dest /.seamark/staging/unit.ab/basis", b"--partial-dir /.seamark/staging/partial", b"--partial-dir ../..",
            b"seamark-revoke", f"seamark-untar gzip {UNIT}/new".encode(), b"seamark-has zstd", b"$(id)", b"`id`", b"; id", b"\nid",
            f"--timeout=9 . {UNIT}/new/\n".encode(), "--timeout=\u0669".encode(), b"--daemon --config=/tmp/x", b"-R -K -L --copy-links",
        ],
        "tar": [_tar_seed(), _tar_seed()[:700]],
    }  # fmt: skip
    return found[name]
