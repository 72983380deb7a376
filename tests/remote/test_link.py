"""Who owes an answer on a link."""

from __future__ import annotations

import pytest

from replication.remote.errors import LinkLost
from replication.remote.link import Link


class Far:
    """A carrier whose far side does ``answer(link)`` while what it was sent is still being sent, and takes ``most`` at once."""

    def __init__(self, answer=lambda link: None, most=1 << 30):
        self.link = Link(self, "the far side", 0.1, lambda _abandon: None)
        self._answer, self._most = answer, most

    def settimeout(self, seconds):
        pass

    def send(self, data):
        self._answer(self.link)
        return min(len(data), self._most)

    def recv(self, size):
        return b"x" * size


def test_an_answer_that_is_faster_than_the_word_that_we_asked():
    """It may be read before the thread that has sent goes on: nothing is owed then, and nobody may wait for it."""
    link = Far(lambda link: link.reader.read(1)).link
    link.writer.write(b"request")
    assert link.patience.owed_s == 0


def test_what_was_asked_and_not_answered_is_owed():
    link = Far(most=3).link
    link.writer.write(b"request")
    assert link.patience.owed_s > 0
    link.reader.read(1)
    assert link.patience.owed_s == 0


def test_a_link_that_owes_for_too_long_is_lost():
    far = Far()
    far.link.writer.write(b"request")
    far.link.patience.timeout_s = 0

    def silent(_size):
        raise TimeoutError

    far.recv = silent
    with pytest.raises(LinkLost, match="has not answered for 0 s"):
        far.link.reader.read(1)
    assert far.link.lost
