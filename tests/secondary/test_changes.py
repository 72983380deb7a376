"""Blocks that are kept aside until all of them are here, and written into the file then."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from hashlib import sha256

import pytest

from replication.secondary.changes import Changes
from replication.secondary.crowd import each, groups

BLOCK = 4096


def digest(content):
    return sha256(content).hexdigest()[:32] if content else ""


class Pair:
    def __init__(self, base, content):
        self.aside, self.live = base / "aside", base / "live"
        self.live.write_bytes(content)
        self.aside.touch()

    def __enter__(self):
        self.fds = [os.open(path, os.O_RDWR) for path in (self.aside, self.live)]
        return Changes(*self.fds, 7, BLOCK, lambda: None)

    def __exit__(self, *_):
        for fd in self.fds:
            os.close(fd)


@pytest.mark.parametrize("seed", range(20))
def test_a_file_becomes_what_was_compared_and_sent_also_by_several_tries(tmp_path, seed):
    draw = random.Random(seed)
    old = draw.randbytes(draw.randrange(20 * BLOCK))
    new = bytearray(old[: draw.randrange(len(old) + 1)] + draw.randbytes(draw.randrange(3 * BLOCK)))
    for _ in range(5):
        at = draw.randrange(max(len(new) - 100, 1))
        new[at : at + 100] = draw.randbytes(len(new[at : at + 100]))
    pair = Pair(tmp_path, old)
    tries = draw.randrange(1, 4)
    for number in range(tries):
        with pair as changes:
            theirs = changes.digests(0, len(new))
            for offset, there in zip(range(0, len(new), BLOCK), theirs, strict=True):
                block = bytes(new[offset : offset + BLOCK])
                if digest(block) == there:
                    continue
                if number < tries - 1 and draw.random() < 0.5:
                    other = bytes(reversed(block))  # of a version between
                    changes.put(offset, memoryview(other))
                    if draw.random() < 0.3:  # killed in the middle of it
                        os.truncate(pair.aside, pair.aside.stat().st_size - draw.randrange(1, len(other) + 1))
                        break
                else:
                    changes.put(offset, memoryview(block))
            assert pair.live.read_bytes() == old
            if number == tries - 1:
                assert changes.fit(pair.fds[1], 7)
                changes.write_into(pair.fds[1], len(new), lambda: None)
    assert pair.live.read_bytes() == new


@pytest.mark.parametrize(
    "meddle",
    [
        lambda path: path.write_bytes(b"another"),
        lambda path: os.truncate(path, 10),
        lambda path: (path.with_name("new").write_bytes(b"x" * 10000), path.with_name("new").rename(path)),
    ],
)
def test_a_file_that_was_written_to_meanwhile_is_not_what_they_are_for(tmp_path, meddle):
    pair = Pair(tmp_path, b"x" * 10000)
    with pair as changes:
        changes.put(0, memoryview(b"y" * BLOCK))
        assert changes.fit(pair.fds[1], 7) and not changes.fit(pair.fds[1], 8)
        meddle(pair.live)
        fd = os.open(pair.live, os.O_RDWR)
        assert not changes.fit(fd, 7)
        os.close(fd)


def test_nothing_of_a_block_that_was_cut_off_is_read_as_another_one(tmp_path):
    """A shorter one is written in its place, and its own content, which is anybody's, looks like blocks from there on."""
    old = b"x" * (BLOCK + 10)
    pair = Pair(tmp_path, old)
    looks_like_one = struct.pack(">QI", 100, 5) + b"wrong"
    with pair as changes:
        changes.put(0, memoryview(b"c" * 10 + looks_like_one * 100))
    os.truncate(pair.aside, pair.aside.stat().st_size - 100)  # killed in the middle of it
    with pair as changes:
        changes.put(BLOCK, memoryview(b"y" * 10))
    with pair as changes:
        assert changes.digests(0, len(old)) == [digest(b"x" * BLOCK), digest(b"y" * 10)]
        changes.write_into(pair.fds[1], len(old), lambda: None)
    assert pair.live.read_bytes() == b"x" * BLOCK + b"y" * 10


def test_what_comes_again_takes_no_more_room(tmp_path):
    """Each try finds another version of a file that changes all the time; the last block grows."""
    old = b"x" * (3 * BLOCK)
    pair = Pair(tmp_path, old)
    for number in range(50):
        blocks = {0: bytes([number]) * BLOCK, 2 * BLOCK: bytes([number]) * (number + 1)}
        with pair as changes:
            for offset, block in blocks.items():
                changes.put(offset, memoryview(block))
            assert changes.digests(0, 2 * BLOCK + number + 1) == [
                digest(each) for each in (blocks[0], old[:BLOCK], blocks[2 * BLOCK])
            ]
            assert pair.aside.stat().st_size <= 2 * (BLOCK + 100)
            if number == 49:
                changes.write_into(pair.fds[1], 2 * BLOCK + 50, lambda: None)
    assert pair.live.read_bytes() == b"".join((blocks[0], old[:BLOCK], blocks[2 * BLOCK]))


def test_what_is_overwritten_halfway_is_not_believed(tmp_path):
    pair = Pair(tmp_path, b"x" * BLOCK)
    with pair as changes:
        changes.put(0, memoryview(b"a" * BLOCK))
    with open(pair.aside, "r+b") as file:  # killed in the middle of the next one
        file.write(struct.pack(">QI", 0, BLOCK) + b"b" * 100)
    with pair as changes:
        assert changes.digests(0, BLOCK) == [digest(b"b" * 100 + b"a" * (BLOCK - 100))]
        changes.put(0, memoryview(b"b" * BLOCK))
        changes.write_into(pair.fds[1], BLOCK, lambda: None)
    assert pair.live.read_bytes() == b"b" * BLOCK


@pytest.mark.parametrize("step", [1, 2])
def test_of_many_blocks_little_is_kept_in_memory(tmp_path, step):
    pair, count = Pair(tmp_path, b""), 20_000
    with pair as changes:
        tracemalloc.start()
        for number in range(count):
            changes.put(step * number * BLOCK, memoryview(b"1"))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 16 * count
    with pair as again:
        last = step * (count - 1) * BLOCK
        assert again.digests(last, last + BLOCK) == [digest(b"1")]


def test_what_lies_aside_and_has_become_shorter_is_an_error(tmp_path):
    pair = Pair(tmp_path, b"x" * BLOCK)
    with pair as changes:
        changes.put(0, memoryview(b"y" * BLOCK))
        os.truncate(pair.aside, 100)
        with pytest.raises(OSError, match="shorter"):
            changes.write_into(pair.fds[1], BLOCK, lambda: None)


def test_a_crowd_gives_what_each_gave_in_order_and_raises_when_all_have_ended():
    assert each(lambda number: number * 2, range(1000)) == [number * 2 for number in range(1000)]
    assert each(str, []) == [] and each(str, [1]) == ["1"]
    done = []

    def work(number):
        if number == 3:
            raise OSError(5, "three")
        done.append(number)

    with pytest.raises(OSError, match="three"):
        each(work, range(50))
    assert set(done) >= set(range(50)) - set(range(3, 50, 8)), "others do not stay behind"
    found = groups(range(1000))
    assert [number for group in found for number in group] == list(range(1000))
