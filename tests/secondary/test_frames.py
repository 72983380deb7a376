"""Frames as an attacker writes them, who has the key of a session: too long, too deep, packed beyond measure. Memory is bounded."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.secondary.protocol import (
    MAX_HEADER,
    MAX_PAYLOAD,
    VERSION,
    AgentError,
    frame,
    read_frame,
    unpacked,
)
from tests.secondary.primary import REPOSITORY

BOUND = 500 << 20  # of one agent's memory, whatever it is sent


# A process starts with its parent's size as its peak: so the agent's is asked of a small parent, which has none of this loaded.
SMALL = """
import os, subprocess, sys
with open(sys.argv[1], "rb") as data, open(sys.argv[2], "wb") as out:
    agent = subprocess.Popen(sys.argv[3:], stdin=data, stdout=out)
    _, status, used = os.wait4(agent.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss)
"""


def answer_to(base, data):
    """What an agent says to these bytes after its hello: the last header, its exit code, and the most memory it had."""
    asked = {
        "id": 1, "op": "hello", "session": "s", "volume": "v", "epoch": 1, "create": True, "protocol": VERSION,
        "adopt": False, "read_only": False, "dry": False, "filled": False, "filters": [], "holder": None, "takes": None,
        "log": "error", "content_only": False,
    }  # fmt: skip
    (base / "in").write_bytes(frame(asked) + data)
    agent = [sys.executable, "-X", "utf8", "-m", "replication.secondary", "serve", str(base / "root")]
    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(base / "in"), str(base / "out"), *agent], capture_output=True, check=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=110,
    )  # fmt: skip
    headers = []
    with open(base / "out", "rb") as stream:
        while (got := read_frame(stream)) is not None:
            headers.append(got[0])
    assert headers[0]["ok"], headers[0]
    code, peak = map(int, done.stdout.split())
    print(f"{str(headers[-1])[:300]}, exit code {code}, {peak >> 10} MiB")
    return headers[-1], code, peak << 10


def raw(header: bytes, payload: bytes = b"", header_size=None, payload_size=None) -> bytes:
    sizes = struct.pack(">II", header_size or len(header), payload_size or len(payload))
    return sizes + header + payload


BOMB = zlib.compress(bytes(1 << 30), 9)
DEEP = b"[" * 1_000_000
ATTACKS = {
    "a header of 4 GiB": raw(b"{}", header_size=0xFFFFFFFF),
    "a payload of 4 GiB": raw(b"{}", b"x" * 1000, payload_size=0xFFFFFFFF),
    "just above the limits": raw(b"{}", header_size=MAX_HEADER + 1),
    "a payload that never comes": raw(b"{}", payload_size=MAX_PAYLOAD),
    "a header that never comes": raw(b"", header_size=MAX_HEADER),
    "lists of nothing": raw(b'{"id":2,"op":"ping","x":[' + b"[]," * (20 << 20) + b"[]]}"),
    "deep nesting": raw(b'{"id":2,"x":' + DEEP + b"]" * 1_000_000 + b"}"),
    "deep, and not closed": raw(DEEP),
    "deep objects": raw(b'{"a":' * 500_000),
    "a number without end": raw(b'{"id":2,"op":"ping","x":' + b"9" * 1_000_000 + b"}"),
    "a string of 60 MiB": raw(b'{"id":2,"op":"' + b"a" * (60 << 20) + b'"}'),
    "content that unpacks to 1 GiB": frame({"id": 2, "op": "data", "items": [], "z": 1}, BOMB),
    "content that is cut off": frame({"id": 2, "op": "data", "items": [], "z": 1}, BOMB[:100]),
    "content that is not packed": frame({"id": 2, "op": "data", "items": [], "z": 1}, b"no zlib"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_memory_is_bounded(tmp_path, attack):
    header, _, peak = answer_to(tmp_path, ATTACKS[attack])
    assert peak < BOUND
    if attack != "a number without end":  # Python 3.9 reads it
        assert header["ok"] is False, header
        assert header["error"] == "protocol", header
        assert len(header["message"]) < 1000, header["message"][:100]


def test_an_agent_goes_on_after_content_that_unpacks_to_too_much(tmp_path):
    good = frame({"id": 3, "op": "ping"})
    header, code, _ = answer_to(tmp_path, ATTACKS["content that unpacks to 1 GiB"] + good)
    assert (header["id"], header["ok"], code) == (3, True, 0)


@given(st.binary(max_size=3000), st.integers(1, 9))
def test_what_is_packed_as_we_do_is_unpacked(content, level):
    assert bytes(unpacked({"z": 1}, zlib.compress(content, level))) == content
    assert bytes(unpacked({}, content)) == content


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_an_error(data):
    stream = io.BytesIO(data)
    with contextlib.suppress(AgentError):
        while read_frame(stream) is not None:
            pass
