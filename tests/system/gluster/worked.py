"""A session on a volume that is worked on, and whose mark is judged all the time."""

from __future__ import annotations

import contextlib
import os

from tests.judge import differences, differences_but_link_counts
from tests.system.gluster.load import Load, MarkJudge
from tests.system.gluster.test_primary import KINDS
from tests.system.trees import many_small_files

_PATIENCE_S = 300


class Worked:
    """A session on a volume that two clients work on; the mark is judged all the time."""

    def __init__(self, place, kind, **options):
        self.place, self.node, self.name = place, place.node, place.name
        self.root = place.volume(*KINDS[kind], **options)
        self.judge = differences_but_link_counts if kind.startswith("replica") else differences
        many_small_files(self.root / "many", 100, 5)
        for number in range(40):
            os.link(self.root / "many" / f"d{number % 5}" / f"f{number}", self.root / f"l{number}")

    @contextlib.contextmanager
    def loaded(self):
        with self.place.run() as self.run:
            self.run.wait_idle()
            self.loads = [Load(self.root, f"load{number}", number) for number in range(2)]
            with MarkJudge(self.run, self.loads) as judge:
                with self.loads[0], self.loads[1]:
                    self.go_on(60)
                    yield self
                    self.go_on(60)
                self.run.wait_same(_PATIENCE_S, self.judge)
                self.run.wait_for(lambda: self.run.status.get("phase") == "idle", "rest", _PATIENCE_S)
            judge.assert_kept()
            self.run.wait_for(
                lambda: self.run.status.get("failures") == 0, "failures to be mended", _PATIENCE_S
            )
            print(
                f"{judge.looked} looks at {judge.marks} marks; {[dict(load.errors) for load in self.loads]}"
            )
            self.run.wait_same(
                _PATIENCE_S, self.judge
            )  # it stays the same, but for the moment in which the mark is written to both roots
            assert self.run.stop() == 0

    def go_on(self, steps=80):
        for load in self.loads:
            load.go_on(self.run, steps, _PATIENCE_S)

    def whole(self):
        """In stillness: until every brick has everything, and the users' client has all bricks."""
        self.node.wait_for(self._is_connected, "the client's bricks")
        self.node.wait_healed(self.name)

    def _is_connected(self):
        with contextlib.suppress(OSError):  # none of them is there yet
            os.stat(self.root)
            clients = list(self.root.glob(f".meta/graphs/active/{self.name}-client-*/private"))
            return all("connected = 1" in each.read_text() for each in clients)
        return False

    @contextlib.contextmanager
    def stillness(self):
        with self.loads[0].still, self.loads[1].still:
            yield
