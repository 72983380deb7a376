"""A secondary that lies: what it answers ends the link at most, and what it names is not found outside of the primary."""

from __future__ import annotations

import json
import os
import struct
import threading

import pytest

from replication.remote.client import SecondaryClient
from replication.remote.errors import LinkLost
from replication.remote.link import _logged
from replication.secondary.protocol import MAX_HEADER, MAX_PAYLOAD
from replication.volume.directory import DirectoryVolume, VanishedError


def answer(header: bytes, payload: bytes = b"", header_size=None, payload_size=None) -> bytes:
    return struct.pack(">II", header_size or len(header), payload_size or len(payload)) + header + payload


@pytest.mark.parametrize(
    "said",
    [
        answer(b"", header_size=0xFFFFFFFF), answer(b"", header_size=MAX_HEADER + 1), answer(b"{}", payload_size=MAX_PAYLOAD + 1),
        answer(b"[" * 1_000_000), answer(b'{"a":' * 500_000), answer(b"null"), answer(b"[]"), answer(b"3"), answer(b"\xff"),
        answer(b'{"id":7,"ok":true}'), answer(b'{"id":"1","ok":true}'), answer(b'{"id":[],"ok":true}'), answer(b""),
        answer(b'{"id":1,"ok":true,"t":1}') * 2,
    ],
)  # fmt: skip
def test_an_answer_that_is_none_ends_the_link_at_once(pipe, said):
    reader, writer = pipe
    with open(os.devnull, "wb", buffering=0) as sink:
        client = SecondaryClient(reader, sink)
        asked = client.submit("ping")
        # Not closed: who waits for the rest of an answer that is refused would wait for ever.
        feeding = threading.Thread(target=lambda: _write(writer, said), daemon=True)
        feeding.start()
        if said.count(b'"id":1,') == 2:
            assert asked.result(20).header["t"] == 1
        else:
            with pytest.raises(LinkLost):
                asked.result(20)
        client._thread.join(20)
        assert not client._thread.is_alive()
        with pytest.raises(LinkLost):
            client.submit("ping")
        client.close()


def test_who_says_that_it_is_alive_has_not_answered_yet(pipe):
    reader, writer = pipe
    with open(os.devnull, "wb", buffering=0) as sink:
        client = SecondaryClient(reader, sink)
        asked = client.submit("ping")
        _write(writer, answer(b'{"alive":true}') * 3 + answer(b'{"id":1,"ok":true,"t":1}'))
        assert asked.result(20).header["t"] == 1
        client.close()


def _write(writer, data):
    data = memoryview(data)
    try:
        while data:
            data = data[writer.write(data) :]
    except OSError:
        pass  # nobody reads on


def test_names_lead_nowhere_outside_of_the_primary(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "inner").mkdir()
    (root / "in").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    volume = DirectoryVolume(os.fsencode(root))
    try:
        for path in (
            b"..", b"../outside", b"in/../../outside", os.fsencode(outside), b"link", b"link/inner", b"/", b"in\0", b"/proc/self/root",
        ):  # fmt: skip
            with pytest.raises((VanishedError, OSError, ValueError)):
                os.close(volume.open_dir_unchecked(path))
        os.close(volume.open_dir_unchecked(b"in"))
    finally:
        volume.close()


def test_what_it_has_logged_is_text(caplog):
    assert _logged(b"seamark-log: error \x1b]0;title\x07\x1b[2J" + json.dumps("a\n").encode() + b"\r forged")
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert "forged" in record.getMessage()
