"""Cutting files into data units, and units as they travel."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replication.transfer.item import FileItem, decode_items, encode_items
from replication.transfer.units import UNIT_BYTES, UNIT_FILES, cut

names = st.binary(min_size=1, max_size=20).filter(
    lambda b: b"/" not in b and b"\0" not in b and b not in (b".", b"..")
)
items = st.lists(
    st.builds(
        FileItem,
        gfid=st.binary(min_size=16, max_size=16),
        path=st.lists(names, min_size=1, max_size=4).map(b"/".join),
        how=st.sampled_from(["new", "data", "compare"]),
        ino=st.integers(0, 2**64 - 1),
        ctime_ns=st.integers(0, 2**63 - 1),
        size=st.one_of(st.integers(0, 5000), st.integers(0, 2**42)),
        nlink=st.integers(1, 3),
        ticket=st.integers(0, 2**40),
    ),
    max_size=60,
)


@given(items)
def test_items_arrive_as_they_were_sent(sent):
    assert decode_items(encode_items(sent)) == sent


@given(items, st.sampled_from(["auto", "stream", "rsync", "tar"]))
def test_every_file_is_in_one_unit_and_units_are_bounded(files, method):
    units = list(cut(files, method))
    assert sorted(item for _, unit in units for item in unit) == sorted(files)
    for engine, unit in units:
        assert method in ("auto", engine)
        assert 0 < len(unit) <= UNIT_FILES
        assert len(unit) == 1 or sum(item.size for item in unit) < 2 * UNIT_BYTES


def test_thousands_of_small_files_go_together():
    small = [FileItem(bytes(16), b"f%d" % n, "new", 1, 1, 2000, 1) for n in range(20_000)]
    assert len(list(cut(small, "auto"))) <= 20_000 // UNIT_FILES + 2
