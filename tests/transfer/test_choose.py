from __future__ import annotations

import pytest

from replication.transfer.choose import RSYNC_MIN_BYTES, choose

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
    assert choose(how, size, "auto") == engine
    assert choose(how, size, "auto", 1 << 50) == "stream"


@pytest.mark.parametrize("method", ["stream", "rsync", "tar"])
def test_a_session_may_insist(method):
    assert choose("new", 1, method) == choose("data", 10 * BIG, method) == method


def test_unknown_method():
    with pytest.raises(ValueError, match="auto, rsync, tar or stream"):
        choose("new", 1, "ftp")
