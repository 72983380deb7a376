"""How what was seen becomes units of data."""

from __future__ import annotations

from types import SimpleNamespace

from replication.transfer.item import FileItem, decode_items
from tasks.metadata import data_units


def test_what_was_seen_by_several_names_is_sent_once_as_it_was_seen_last():
    ctx = SimpleNamespace(sync_method="auto", session=SimpleNamespace(rsync_from=1 << 20))
    seen = [FileItem(gfid * 16, name, "new", 7, 5, 1, 2, ticket) for gfid, name, ticket in (
        (b"a", b"d/one", 3), (b"b", b"d/other", 3), (b"a", b"e/two", 4),
    )]  # fmt: skip
    units, says = data_units(seen, ctx, "E:5:")
    (unit,) = units
    assert sorted(decode_items(units[unit])) == sorted(seen[1:])
    assert says[unit].startswith("2 files, 2 bytes")
