"""Against changelogs that a real GlusterFS 10.3 wrote, beside the list of operations that made them."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from uuid import UUID

import pytest

from replication.changelog.glusterlog import parse_gluster, read_header, records_so_far
from replication.changelog.reader import read_segment
from replication.changelog.record import Kind, Record, SegmentDamaged

DATA = Path(__file__).parent / "data"
ROOT = UUID(int=1).bytes
CONTENT = {"create", "append", "overwrite", "truncate", "truncate_up", "open_trunc", "create_big", "sparse"}
METADATA = {"chmod", "chown", "utimens", "setxattr"}


def operations(name: str) -> list[dict[str, object]]:
    with gzip.open(
        DATA / f"{name}.manifest.jsonl.gz", "rt", encoding="utf-8", errors="surrogateescape"
    ) as lines:
        return [json.loads(line) for line in lines]


def records(*files: str) -> list[Record]:
    return [record for file in files for record in read_segment(DATA / file)]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("binary", ["binary.CHANGELOG"]),
        ("distribute", ["distribute-brick1.CHANGELOG", "distribute-brick2.CHANGELOG"]),
    ],
)
def test_every_operation_is_there(name: str, files: list[str]) -> None:
    kinds: dict[bytes | None, Kind] = defaultdict(lambda: Kind(0))
    entries: dict[bytes | None, set[bytes | None]] = defaultdict(set)
    for record in records(*files):
        kinds[record.gfid] |= record.kinds
        entries[record.gfid].add(record.name)
    for operation in operations(name):
        if operation["gfid"] is None:
            continue
        gfid = UUID(str(operation["gfid"])).bytes
        op, arguments = operation["op"], operation["args"]
        assert isinstance(arguments, list)
        if op in METADATA:
            assert kinds[gfid] & Kind.M, operation
        elif op in CONTENT and not (op == "create" and arguments[1] == 0):
            assert kinds[gfid] & Kind.D, operation
        if op in {"mkdir", "create", "unlink", "mkfifo", "symlink", "link", "rename"}:
            path = arguments[1] if op in {"symlink", "link", "rename"} else arguments[0]
            assert str(path).encode("utf-8", "surrogateescape").rpartition(b"/")[2] in entries[gfid], (
                operation
            )
        if op == "rename":
            old = str(arguments[0]).encode("utf-8", "surrogateescape").rpartition(b"/")[2]
            assert old in entries[gfid], operation


def test_counts() -> None:
    assert Counter(record.kinds for record in records("binary.CHANGELOG")) == {
        Kind.E: 499,
        Kind.D: 344,
        Kind.M: 6,
    }
    both = records("distribute-brick1.CHANGELOG", "distribute-brick2.CHANGELOG")
    assert Counter(record.kinds for record in both) == {Kind.E: 622, Kind.D: 444, Kind.M: 37}
    assert records("empty.CHANGELOG") == []


def test_samples() -> None:
    first, second = records("binary.CHANGELOG")[:2]
    assert first == Record(Kind.M, ROOT, None, None)
    assert second == Record(
        Kind.E, UUID("2b88115b-8f9d-4e2d-8bb2-99ddbc80cac5").bytes, ROOT, b"d", first=True, directory=True
    )
    info = read_segment(DATA / "distribute-brick1.CHANGELOG").info
    assert (info.format, info.version) == ("gluster", "1.2 ascii")


def test_names_of_any_bytes() -> None:
    names = {record.name for record in records("binary.CHANGELOG") if record.name}
    assert any(b"\n" in name for name in names)
    assert any(b"\xff" in name for name in names)


def test_both_encodings_say_the_same() -> None:
    """The fields of one real record of each shape, written once in each encoding."""
    gfid, parent = UUID(int=0x450044004D00), UUID(int=0x2F00)
    header = b"GlusterFS Changelog | version: v1.2 | encoding : %d\n"

    def number(value: int, binary: bool) -> bytes:
        return (value.to_bytes(4, "little") if binary else str(value).encode()) + b"\0"

    def entry(binary: bool, fop: int, numbers: list[int], *tail: bytes) -> bytes:
        where = parent.bytes if binary else str(parent).encode()
        who = gfid.bytes if binary else str(gfid).encode()
        body = b"".join(number(value, binary) for value in [fop, *numbers])
        return b"E" + who + b"\0" + body + b"".join(t.replace(b"P", where, 1) for t in tail)

    def everything(binary: bool) -> bytes:
        who = (gfid.bytes if binary else str(gfid).encode()) + b"\0"
        return header % (1 if binary else 2) + b"".join([
            b"D", who, b"M", who, number(38, binary),
            entry(binary, 23, [33188, 0, 0], b"P/new\nfile\0"), entry(binary, 9, [], b"P/link\0"),
            entry(binary, 8, [], b"P/old\0", b"P/new\0"),
            entry(binary, 5, [], b"P/gone\0", b"d/gone\0"), entry(binary, 6, [], b"P/gone\0", b"\0\0"),
            b"D", who,
        ])  # fmt: skip

    found = [list(parse_gluster("x", everything(binary))) for binary in (True, False)]
    assert found[0] == found[1]
    assert len(found[0]) == 9
    assert [record.name for record in found[0]] == [
        None, None, b"new\nfile", b"link", b"old", b"new", b"gone", b"gone", None,
    ]  # fmt: skip


def as_version_1_1(data: bytes) -> bytes:
    """A changelog of version 1.2 as 1.1 has it: without the paths of what was deleted, which are two NULs in these files."""
    encoding, at = read_header("x", data)
    made = data[:at].replace(b"v1.2", b"v1.1")
    for (record, *more), end in records_so_far("x", data[at:], encoding):
        piece = data[at : header_size(data) + end]
        removed = not more and record.kinds is Kind.E and piece.endswith(record.name + b"\0\0\0")
        made += piece[:-2] if removed else piece
        at = header_size(data) + end
    return made


def header_size(data: bytes) -> int:
    return data.index(b"\n") + 1


@pytest.mark.parametrize("name", ["binary.CHANGELOG", "distribute-brick1.CHANGELOG"])
def test_version_1_1_has_no_paths_of_what_was_deleted(name: str) -> None:
    data = (DATA / name).read_bytes()
    old = as_version_1_1(data)
    assert len(data) - len(old) >= 2 * 10  # so many of them at least were deleted
    found = parse_gluster("x", old)
    assert list(found) == list(parse_gluster("x", data))
    assert found.info.version == str(read_header("x", data)[0]).replace("1.2", "1.1")
    with pytest.raises(SegmentDamaged):
        list(parse_gluster("x", data.replace(b"v1.2", b"v1.1", 1)))
    with pytest.raises(SegmentDamaged):
        list(parse_gluster("x", old.replace(b"v1.1", b"v1.2", 1)))


@pytest.mark.parametrize("cut", [1, 5, 17])
def test_a_cut_record_is_damage(cut: int) -> None:
    data = (DATA / "binary.CHANGELOG").read_bytes()
    whole = list(parse_gluster("x", data))
    seen: list[Record] = []
    with pytest.raises(SegmentDamaged):
        seen.extend(parse_gluster("x", data[:-cut]))
    assert seen == whole[: len(seen)]


def test_unknown_versions_are_refused() -> None:
    with pytest.raises(SegmentDamaged, match=r"v1\.3"):
        parse_gluster("x", b"GlusterFS Changelog | version: v1.3 | encoding : 1\n")
