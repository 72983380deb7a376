"""A checkpoint is never reached before everything older is on the secondary, whatever happens in between."""

from __future__ import annotations

import sqlite3
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from replication import checkpoints
from replication.failures import Failure
from replication.progress import Progress

SECOND = 10**9


class Clock:
    """A clock that only goes on by itself, and that may be set."""

    def __init__(self):
        self.now = 1_000_000 * SECOND

    def __call__(self):
        self.now += SECOND
        return self.now


class World:
    """What really happened, beside what the progress database is told of it.

    A change is missing until the front passes its position, or a scan that began after it ended, and
    for as long as it fails.
    """

    def __init__(self, path, clock):
        self.clock, self.progress = clock, Progress(path)
        self.epoch = self.progress.new_epoch(0)
        self.progress.secondary_is("index", 1, "first boot")
        self.position = 0
        self.missing = {}  # order of the change -> its position
        self.failing = {}  # order -> key on the failure list
        self.order = 0
        self.crawl = None  # (id, order and position at its beginning)
        self.asked = {}  # id -> order of the last change before it

    def change(self):
        self.order += 1
        self.position += 1
        self.missing[self.order] = self.position

    def ask(self, recorded):
        before = self.clock()
        position = self.position if recorded else None
        number = self.progress.ask(before, position=position, by_time=False)
        self.asked[number] = self.order

    def advance(self, upto, fail):
        front = min(self.position, self.progress.brick().front + upto)
        done = [order for order, position in self.missing.items() if position <= front]
        bad = done[:fail]
        self._record(bad)
        for order in done[fail:]:
            del self.missing[order]
        self.progress.advance(self.epoch, front, self.clock())

    def _record(self, orders):
        """They fail; since when is a time before any of them changed, as the start of a batch is."""
        new = [order for order in orders if order not in self.failing]
        for order in new:
            self.failing[order] = f"data:{order}"
        self.progress.record(
            [Failure(step="data", gfid=str(o), path=None, code="io", error="E") for o in new],
            [],
            1,
        )

    def resolve(self):
        for order, key in list(self.failing.items()):
            del self.failing[order]
            self.missing.pop(order, None)
            self.progress.record([], [key])

    def begin_crawl(self):
        if self.crawl is None:
            name = f"c{self.order}.{self.clock()}"
            assert self.progress.begin_crawl(self.epoch, name, self.position, self.clock(), 0, {"C:0": "[]"})
            self.crawl = (name, self.order)

    def drop_crawl(self):
        """The secondary's host restarted: what the crawl did so far may be lost."""
        boot = str(self.clock())
        self.progress.secondary_is("index", 1, boot)
        self.crawl = None

    def end_crawl(self):
        if self.crawl is not None:
            name, order = self.crawl
            for each in [each for each in self.missing if each <= order and each not in self.failing]:
                del self.missing[each]
            self.progress.end_crawl(self.epoch, name, recorded=False)
            self.crawl = None

    def lose_changelog(self):
        """It is made anew, from position 1; only a scan can tell what was in it."""
        self.progress.changelog_lost()
        if self.crawl is not None:
            self.drop_crawl()
        self.position = 0
        self.missing = dict.fromkeys(self.missing, 10**9)

    def set_clock(self, by_s):
        self.clock.now += by_s * SECOND

    def check(self):
        for found in self.progress.checkpoints():
            if found.reached_ns is not None:
                before = self.asked[found.id]
                assert not [order for order in self.missing if order <= before], (found, self.missing)


STEPS = st.one_of(
    st.tuples(st.just("change")),
    st.tuples(st.just("ask"), st.booleans()),
    st.tuples(st.just("advance"), st.integers(0, 4), st.integers(0, 2)),
    st.tuples(st.just("resolve")),
    st.tuples(st.just("begin_crawl")),
    st.tuples(st.just("end_crawl")),
    st.tuples(st.just("drop_crawl")),
    st.tuples(st.just("lose_changelog")),
    st.tuples(st.just("set_clock"), st.integers(-5000, 5000)),
)


COMPLETE = [("begin_crawl",), ("end_crawl",)]


@settings(max_examples=150)
@example([*COMPLETE, ("change",), ("change",), ("ask", True), ("advance", 1, 0)])
@example(
    [("set_clock", 5000), *COMPLETE, ("set_clock", -5000), ("change",), ("ask", True), ("advance", 1, 1)]
)
@example(
    [*COMPLETE, ("change",), ("ask", True), ("lose_changelog",), ("change",), *COMPLETE, ("advance", 1, 0)]
)
@example(
    [
        *COMPLETE,
        ("change",),
        ("lose_changelog",),
        ("begin_crawl",),
        ("change",),
        ("ask", True),
        ("end_crawl",),
    ]
)
@example(
    [
        ("change",),
        ("lose_changelog",),
        ("change",),
        ("change",),
        ("ask", True),
        ("lose_changelog",),
        ("change",),
        ("begin_crawl",),
        ("change",),
        ("end_crawl",),
        ("advance", 4, 0),
    ]
)
@given(st.lists(STEPS, max_size=30))
def test_never_reached_before_everything_older_is_there(in_memory, steps):
    clock = Clock()
    with mock.patch("time.time_ns", clock):
        world = World(in_memory() / "progress.sqlite", clock)
        try:
            for name, *args in steps:
                getattr(world, name)(*args)
                world.check()
            # and in the end it is: all work is done, and a scan looks at everything
            world.resolve()
            world.set_clock(20_000)
            world.drop_crawl()
            world.begin_crawl()
            world.end_crawl()
            world.resolve()
            world.advance(10**9, 0)
            world.check()
            assert all(found.reached_ns is not None for found in world.progress.checkpoints())
        finally:
            world.progress.close()


def test_a_time_is_reached_when_the_mark_passes_it(tmp_path):
    progress = Progress(tmp_path / "progress.sqlite")
    epoch = progress.new_epoch(0)
    progress.begin_crawl(epoch, "c", 0, 100, 0, {})
    progress.end_crawl(epoch, "c", recorded=False)
    past, future = (
        progress.ask(50, position=None, by_time=True),
        progress.ask(200, position=None, by_time=True),
    )
    assert {c.id: c.reached_ns is not None for c in progress.checkpoints()} == {past: True, future: False}
    progress.advance(epoch, 1, 199)
    assert progress.checkpoints()[1].reached_ns is None
    progress.advance(epoch, 2, 200)
    reached = progress.checkpoints()[1].reached_ns
    assert reached is not None
    progress.advance(epoch, 3, 300)
    assert progress.checkpoints()[1].reached_ns == reached  # kept
    progress.close()
    assert [c.reached_ns for c in checkpoints.read(tmp_path / "progress.sqlite")][1] == reached


def test_a_database_of_an_older_version_gets_the_table(tmp_path):
    path = tmp_path / "progress.sqlite"
    Progress(path).close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE checkpoint")
        db.execute("PRAGMA user_version=3")
    db.close()
    assert checkpoints.read(path) == []
    progress = Progress(path)
    progress.ask(1, position=None, by_time=True)
    progress.close()
    assert len(checkpoints.read(path)) == 1
    assert checkpoints.read(tmp_path / "nothing") == []


def test_only_so_many_are_kept(tmp_path):
    progress = Progress(tmp_path / "progress.sqlite")
    epoch = progress.new_epoch(0)
    progress.begin_crawl(epoch, "c", 0, 100, 0, {})
    progress.end_crawl(epoch, "c", recorded=False)
    for _ in range(checkpoints.KEPT + 20):
        progress.ask(50, position=None, by_time=True)
    assert len(progress.checkpoints()) == checkpoints.KEPT
    progress.close()
