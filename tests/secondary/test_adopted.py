"""Whose a secondary is, is lost or was taken away: what its index says is no longer believed."""

from __future__ import annotations

import json
import os

from tests.secondary.primary import Far, Primary
from tests.secondary.test_seeding import kept


def test_a_secondary_whose_owner_was_removed_is_adopted_by_another_session(tmp_path):
    """As the runbook has it for a second secondary, when the first was promoted: it may have more than the new primary."""
    old, new, root = tmp_path / "old", tmp_path / "new", tmp_path / "b"
    for primary in (old, new):
        (primary / "d").mkdir(parents=True)
        (primary / "d" / "same").write_bytes(b"the same on both" * 100)
        os.utime(primary / "d" / "same", (1e9, 1e9))
    (old / "more").write_bytes(b"never came to the new primary")
    with Far(root) as client:
        Primary(old).crawl(client)
    (root / ".seamark" / "owner").unlink()
    side = Primary(new)
    with Far(root, session="t", volume="w", adopt=True) as client:
        side.crawl(client, rebuilt=True)
        side.crawl(client, "again", stamp=2)
        assert client.check() == []
    assert side.sent == set()
    assert kept(root) == {"more": b"never came to the new primary"}
    assert json.loads((root / ".seamark" / "owner").read_text())["session"] == "t"


def test_a_name_of_a_file_that_only_the_secondary_had_keeps_what_it_had(tmp_path):
    """Its file has a name that the primary knows too, with another content."""
    here, root = tmp_path / "a", tmp_path / "b"
    here.mkdir()
    root.mkdir()
    (here / "name").write_bytes(b"of the primary")
    (root / "name").write_bytes(b"of the secondary alone")
    os.link(root / "name", root / "other name")
    side = Primary(here)
    with Far(root, adopt=True) as client:
        side.crawl(client, rebuilt=True)
        assert client.check() == []
    assert (root / "name").read_bytes() == b"of the primary"
    assert kept(root) == {"other name": b"of the secondary alone"}
