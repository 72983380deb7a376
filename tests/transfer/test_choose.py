from __future__ import annotations

import pytest

from replication.transfer.choose import RSYNC_MIN_BYTES, LinkFacts, choose

BIG = RSYNC_MIN_BYTES


@pytest.mark.parametrize(
    ("how", "size", "engine"),
    [
        ("new", 0, "stream"),
        ("new", 100 * BIG, "stream"),
        ("data", BIG - 1, "stream"),
        ("data", BIG, "rsync"),
        ("compare", BIG, "rsync"),
        ("compare", 1, "stream"),
    ],
)
def test_auto(how, size, engine):
    assert choose(how, size, 1, "auto") == engine
    assert choose(how, size, 1, "auto", rsync_there=False) == "stream"


@pytest.mark.parametrize("method", ["stream", "rsync", "tar"])
def test_a_session_may_insist(method):
    assert choose("new", 1, 1, method) == choose("data", 10 * BIG, 3, method) == method


def test_unknown_method():
    with pytest.raises(ValueError, match="auto, rsync, tar or stream"):
        choose("new", 1, 1, "ftp")


def test_thin_links():
    assert LinkFacts(rtt_s=0.1).is_thin
    assert not LinkFacts(rtt_s=0.0005).is_thin
    assert LinkFacts(rtt_s=0.0005, bytes_per_s=2e6).is_thin
    assert not LinkFacts(rtt_s=0.1, bytes_per_s=1e9).is_thin
    assert not LinkFacts().is_thin
