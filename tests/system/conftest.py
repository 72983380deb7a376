"""Places for whole runs, and the tree that everything must survive."""

from __future__ import annotations

import pytest

from tests.conftest import need
from tests.system.harness import SeamarkRun


class Place:
    """A primary, a secondary and a state directory; ``run`` starts Seamark on them."""

    def __init__(self, base):
        self.base = base
        self.primary, self.secondary, self.state = base / "primary", base / "secondary", base / "state"
        self.primary.mkdir()
        self.runs = []

    def run(self, *options, secondary=None, **more):
        made = SeamarkRun(self.primary, secondary or self.secondary, self.state, *options, **more)
        self.runs.append(made)
        return made

    def once(self, *options, timeout=90, **more):
        """One `--once` run; returns it, ended. Its exit code is ``.process.returncode``."""
        with self.run("--once", *options, **more) as made:
            made.wait(timeout)
            return made


@pytest.fixture
def place(tmp_path):
    need("rsync", "mtree")
    made = Place(tmp_path)
    yield made
    for run in made.runs:
        if run.process.poll() is None:
            run.kill()
        run.close()
