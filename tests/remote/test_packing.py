"""What compresses is compressed; what does not is found out cheaply."""

from __future__ import annotations

import os
import zlib

from hypothesis import given
from hypothesis import strategies as st

from replication.remote import packing
from replication.remote.packing import packed

TEXT = b"all work and no play makes jack a dull boy\n" * 20_000


def test_text_is_packed():
    small = packed(TEXT)
    assert small is not None and len(small) < len(TEXT) / 10
    assert zlib.decompress(small) == TEXT


def test_noise_is_not_and_only_samples_of_it_are_tried(monkeypatch):
    tried = []
    compress = zlib.compress
    monkeypatch.setattr(
        packing.zlib, "compress", lambda data, level: tried.append(len(data)) or compress(data, level)
    )
    noise = os.urandom(4 << 20)
    assert packed(noise) is None
    assert sum(tried) < len(noise) / 50


def test_text_behind_a_picture_is_found():
    assert packed(os.urandom(100_000) + TEXT) is not None


@given(st.binary(max_size=2000), st.integers(0, 200))
def test_whatever_is_packed_comes_out_again_and_is_smaller(piece, times):
    payload = piece * times
    small = packed(payload)
    if small is not None:
        assert len(small) < len(payload)
        assert zlib.decompress(small) == payload
