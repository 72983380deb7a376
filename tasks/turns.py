"""Whose turn it is: the order in which a worker on Redis takes from its queues (kombu's ``queue_order_strategy``).

Sessions come in turn, whatever waits in the queues of each, and so do the queues of one session: a session with a
million files does not keep another one's single file waiting, nor does a huge directory the rest of its own session.
What asks whether a worker is alive comes first, comparisons last. (On RabbitMQ the broker itself deals out in turn.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIRST = "alive."
_LAST = "verify."


def _fleet(queue: str) -> str:
    """``stream.home.5ad1…`` → ``home.5ad1…``: the queues of one session end alike."""
    return queue.partition(".")[2]


class Turns:
    """A cycle as kombu's round_robin_cycle is one, over queues by session."""

    def __init__(self, queues: Iterable[str] = ()) -> None:
        self._first: list[str] = []
        self._last: list[str] = []
        self._fleets: dict[str, list[str]] = {}  # in the order of their turns, as the queues of each are
        self.update(queues)

    def update(self, queues: Iterable[str]) -> None:
        """These are consumed from now on; those that were keep their turns."""
        wanted = list(queues)
        self._first = [queue for queue in wanted if queue.startswith(_FIRST)]
        last = [queue for queue in wanted if queue.startswith(_LAST)]
        self._last = [*(q for q in self._last if q in last), *(q for q in last if q not in self._last)]
        rest = [queue for queue in wanted if not queue.startswith((_FIRST, _LAST))]
        kept = {fleet: [q for q in old if q in rest] for fleet, old in self._fleets.items()}
        for queue in rest:
            turn = kept.setdefault(_fleet(queue), [])
            if queue not in turn:
                turn.append(queue)
        self._fleets = {fleet: turn for fleet, turn in kept.items() if turn}

    def consume(self, n: int) -> list[str]:
        """The next ``n`` queues: from the first of them that holds anything a message is taken."""
        return [*self._first, *(queue for turn in self._fleets.values() for queue in turn), *self._last][:n]

    def rotate(self, last_used: str) -> str:
        """A message came from this queue: it is last now in its session, and its session last of all."""
        if last_used in self._last:
            self._last.append(self._last.pop(self._last.index(last_used)))
        fleet = _fleet(last_used)
        turn = self._fleets.get(fleet, [])
        if last_used in turn:
            turn.append(turn.pop(turn.index(last_used)))
            self._fleets[fleet] = self._fleets.pop(fleet)
        return last_used
