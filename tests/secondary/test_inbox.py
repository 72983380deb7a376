"""The far side reads on while it works; in order, and not without end."""

from __future__ import annotations

import contextlib
import os
import time

import pytest

from replication.secondary.inbox import Inbox
from replication.secondary.protocol import AgentError, frame


def test_frames_in_order_then_the_end(pipe):
    reader, writer = pipe
    inbox = Inbox(reader)
    for number in range(50):
        writer.write(frame({"id": number}, b"p" * number))
    writer.close()
    got = [inbox.next() for _ in range(51)]
    assert got == [({"id": n}, b"p" * n) for n in range(50)] + [None]


def test_what_is_no_frame_is_said_after_those_before_it(pipe):
    reader, writer = pipe
    inbox = Inbox(reader)
    writer.write(frame({"id": 1}) + b"\xff" * 8)
    assert inbox.next() == ({"id": 1}, b"")
    with pytest.raises(AgentError, match="not a frame"):
        inbox.next()


def test_it_reads_ahead_but_not_everything(pipe):
    reader, writer = pipe
    inbox = Inbox(reader)
    os.set_blocking(writer.fileno(), False)
    one = frame({"id": 1}, b"x" * (1 << 20))
    written, quiet = 0, time.monotonic()
    while time.monotonic() - quiet < 0.5 and written < 100 * len(one):
        count = writer.write(one[written % len(one) :])
        if count:
            written, quiet = written + count, time.monotonic()
        else:
            time.sleep(0.001)
    assert 5 * len(one) < written < 20 * len(one)
    for _ in range(written // len(one)):
        assert inbox.next() == ({"id": 1}, b"x" * (1 << 20))
    writer.close()
    with contextlib.suppress(AgentError):  # the last one came in part
        assert inbox.next() is None
