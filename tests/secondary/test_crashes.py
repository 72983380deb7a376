"""kill -9 of the agent at every point between two operations: the same requests again converge."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat

import pytest

from replication.remote.errors import LinkLost
from tests.secondary.primary import Far
from tests.secondary.test_machine import Tree

POINTS = (
    "journal", "step", "linked", "over", "lifted", "place", "commit", "committed", "staged", "purge",
)  # fmt: skip
RARE = {"linked": 3, "over": 3, "lifted": 1}
SEEDS = int(os.environ.get("SEAMARK_EXAMPLES", "3"))


class CrashingTree(Tree):
    """The agent dies at a fault point every now and then; what it had not answered is sent again."""

    point = "step"
    crashes = 0
    most = 6  # passages of the point before it kills

    def survive(self, work):
        for _ in range(100):
            try:
                return work()
            except LinkLost:
                self.crashes += 1
                self.restart()
        raise AssertionError("it keeps dying")

    def restart(self):
        self.far.close()
        fault = f"{self.point}:{self.random.randint(1, self.most)}" if self.random.random() < 0.9 else ""
        while True:
            try:
                self.far = Far(os.fsdecode(self.b), fault=fault)
                self.client = self.far.client
                self.client.begin_crawl("x")
                return
            except LinkLost:
                self.crashes += 1
                self.far.close()
                fault = ""

    def replace_and_remove(self):
        """Names that go while their content is still to come."""
        self.rest()
        paths = self.primary.paths().values()
        files = [p for p in paths if stat.S_ISREG(os.lstat(self.full(p)).st_mode)]
        for work in (self.do_save, self.do_unlink):
            for path in files:
                with contextlib.suppress(OSError):
                    work(path, b"")
            self.look(self.take(1000))
            while self.outbox:
                self.send_one()

    def send_one(self):
        return self.survive(super().send_one)

    def fulfil(self):
        return self.survive(super().fulfil)

    def rest(self):
        return self.survive(super().rest)


def run(seed, point):
    tree = CrashingTree()
    tree.point = point
    tree.most = RARE.get(point, tree.most)
    tree.random = choose = random.Random(seed)
    try:
        tree.restart()
        for _ in range(20):
            tree.change()
        for _ in range(15):
            kind = choose.choice(["change", "change", "look", "look", "send", "send", "rest", "replace"])
            if kind == "change":
                for _ in range(choose.randint(1, 10)):
                    tree.change()
            elif kind == "look":
                tree.look(tree.take(choose.randint(1, 40)))
            elif kind == "send":
                tree.send_some()
            elif kind == "replace":
                tree.replace_and_remove()
            else:
                tree.rest()
        tree.rest()
        return tree.crashes, tree.carried
    finally:
        tree.far.close()
        shutil.rmtree(tree.base, ignore_errors=True)


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_asked_again_converges(point):
    crashes = carried = 0
    for seed in range(10 * SEEDS):
        killed, went_along = run(seed, point)
        crashes, carried = crashes + killed, carried + went_along
        if seed >= SEEDS - 1 and crashes:
            break
    assert crashes, "the agent was never killed: this test proves nothing"
    assert carried, "no content went along: this test proves less than it says"
