from __future__ import annotations

import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from replication.changelog.dump import dump, escape
from replication.changelog.record import DirHint
from replication.changelog.segment import Place, SegmentWriter

DATA = Path(__file__).parent / "data"


def unescape(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1") if text.isascii() else b""


@given(st.binary(min_size=1, max_size=20))
def test_names_are_escaped_without_loss(name: bytes) -> None:
    text = escape(name)
    assert text.isprintable()
    if text.isascii():
        assert unescape(text) == name
    else:
        assert name.decode()


def test_our_own(tmp_path: Path) -> None:
    path = tmp_path / "7.segment"
    writer = SegmentWriter(str(path), 7, 1)
    hint = DirHint(b"hand", b"photos")
    writer.append([Place(bytes(15) + b"\2", hint, False, {b"a\tb\xff": 5, b"": 2, b"-": 1})])
    writer.close(9)
    out = io.StringIO()
    dump([path], out)
    gfid = "00000000-0000-0000-0000-000000000002"
    assert out.getvalue().splitlines() == [
        f"# {path}: seamark 1, segment 7, 1 to 9",
        f"E-D\t-\t{gfid}\ta\\tb\\xff\tphotos/a\\tb\\xff",
        f"-M-\t{gfid}\t-\t-\tphotos",
        f"E--\t-\t{gfid}\t\\x2d\tphotos/-",
    ]


def test_torn(tmp_path: Path) -> None:
    path = tmp_path / "torn"
    writer = SegmentWriter(str(path), 7, 1)
    writer.abandon()
    path.write_bytes(path.read_bytes() + b"half")
    out = io.StringIO()
    dump([path], out)
    assert "(open)" in out.getvalue()
    assert "# torn: 4 bytes" in out.getvalue()


def test_gluster() -> None:
    out = io.StringIO()
    dump([DATA / "distribute-brick1.CHANGELOG"], out)
    lines = out.getvalue().splitlines()
    assert lines[0].endswith(": gluster 1.2 ascii")
    assert all(line.count("\t") == 3 for line in lines[1:])
