"""The targets of the fuzzer over their seeds, seeds with a few bytes changed, and any bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, UNIT, _ask_gate, seeds

WORDS = st.sampled_from(
    ["--rsh", "--rsh=sh", "-e", "--log-file=/tmp/x", "--write-batch=b", "--files-from=-", "--daemon", "--sender", "-R", "--relative", "..", ".",
     "/", "/etc", "--copy-dest", "--partial-dir", "--temp-dir=/tmp", "--backup-dir=/", "--inplace", "--stats", "--no-W", "--timeout=1",
     "--bwlimit=1", "-ISpe.Lsf", "-ISpze.Lsf", "-logDtpre.Lsf", "--", "", "$(id)", "`id`", ";", "|", "&&", ">x", "\n", "*", "~", "'", '"', "\\",
     UNIT, f"{UNIT}/new/", f"{UNIT}/new", f"{UNIT}/basis", "/.seamark/staging/partial", f"{UNIT}/new/../../..", "rsync", "--server", "--config=/x",
     "--compress-choice=zstd", "--compress-level=9", "--remote-option=x", "-M--rsh=x", "--filter=merge /etc/passwd", "--link-dest", "--chown=0"]
)  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_near_to_them(name):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    found = seeds(name)
    assert found
    for data in found:
        TARGETS[name](data)
        for _ in range(100):
            changed = bytearray(data)
            for _ in range(draw.randrange(1, 5)):
                at = draw.randrange(len(changed) + 1)
                changed[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
            TARGETS[name](bytes(changed))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150)
@given(data=st.binary(max_size=400))
def test_any_bytes(name, data):
    TARGETS[name](data)


@settings(max_examples=500)
@given(
    words=st.lists(WORDS | st.text(max_size=10), max_size=8),
    end=st.sampled_from(["", f". {UNIT}/new/", f". {UNIT}/new"]),
)
def test_arguments_of_rsync(words, end):
    asked = " ".join(word.replace("\0", "") for word in words)
    _ask_gate(f"rsync --server {asked} {end}")
    _ask_gate(f"rsync --server -ISpe.LsfxCIvu {asked} {end}")
    _ask_gate(asked)
