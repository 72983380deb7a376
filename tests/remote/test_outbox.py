"""Frames are written in order by a thread of their own, and little of them waits."""

from __future__ import annotations

import threading

import pytest

from replication.remote.outbox import Outbox

FRAME = b"x" * (1 << 20)


def test_order_is_kept_and_what_waits_is_written_before_the_end(pipe):
    reader, writer = pipe
    outbox = Outbox(writer, pytest.fail)
    frames = [b"%d " % n * 5000 for n in range(200)]
    for frame in frames:
        outbox.put(frame)
    outbox.close()
    assert reader.read() == b"".join(frames)


def test_a_maker_of_frames_waits_only_when_much_is_waiting(pipe):
    reader, writer = pipe
    outbox = Outbox(writer, pytest.fail)
    for _ in range(4):
        outbox.wait_for_room()
        outbox.put(FRAME)
    went_on = threading.Event()
    threading.Thread(target=lambda: (outbox.wait_for_room(), went_on.set()), daemon=True).start()
    assert not went_on.wait(0.2)
    reader.read(2 << 20)
    assert went_on.wait(10)
    outbox.close()
    reader.read()


def test_a_writer_that_fails_is_told_of_once_and_nobody_waits_for_it(pipe):
    reader, writer = pipe
    told: list[Exception] = []
    ended = threading.Event()
    outbox = Outbox(writer, lambda error: (told.append(error), ended.set()))
    for _ in range(8):
        outbox.put(FRAME)
    reader.close()
    outbox.wait_for_room()
    assert ended.wait(10)
    outbox.put(FRAME)
    assert [type(error) for error in told] == [BrokenPipeError]
