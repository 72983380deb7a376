"""Random operations on the primary while replication runs, is stopped, killed and started; then the judges."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.judge import assert_same
from tests.system.harness import SeamarkRun
from tests.system.trees import ODD_NAMES

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_EXCHANGE = 2

# Without the newline: mtree cannot read its own specification of such names (test_once.py has one).
names = st.sampled_from([b"a", b"b", b"c", b"d", *ODD_NAMES[1:5]])
contents = st.binary(max_size=3000)
modes = st.sampled_from([0o600, 0o644, 0o755, 0o4755, 0o1777, 0o2750])


class Replication(RuleBasedStateMachine):
    """The tree is small and the names are few, so that they meet again and again."""

    @initialize()
    def begin(self):
        self.base = Path(tempfile.mkdtemp(prefix="seamark-machine-"))
        self.primary = os.fsencode(self.base / "primary")
        os.mkdir(self.primary)
        self.run = None
        self.done = {}
        self.start()

    def start(self):
        self.run = SeamarkRun(self.base / "primary", self.base / "secondary", self.base / "state")
        self.run.wait_for(lambda: self.run.status, "the first word")

    def places(self):
        found = [self.primary]
        for directory, below, _ in os.walk(self.primary):
            found += [
                os.path.join(directory, name) for name in below if not os.path.islink(directory + b"/" + name)
            ]
        return found

    def place(self, draw, name):
        directories = self.places()
        return os.path.join(directories[draw % len(directories)], name)

    # ---- what people and programs do to files

    @rule(at=st.integers(0, 50), name=names, content=contents, mode=modes)
    def write(self, at, name, content, mode):
        with contextlib.suppress(IsADirectoryError, FileNotFoundError, OSError):
            path = self.place(at, name)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
            os.write(fd, content)
            os.close(fd)

    @rule(at=st.integers(0, 50), name=names, size=st.integers(0, 100_000))
    def truncate(self, at, name, size):
        path = self.place(at, name)
        if os.path.isfile(path) and not os.path.islink(path):
            os.truncate(path, size)

    @rule(at=st.integers(0, 50), name=names)
    def mkdir(self, at, name):
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.place(at, name))

    @rule(at=st.integers(0, 50), name=names, to=st.integers(0, 50), new=names)
    def rename(self, at, name, to, new):
        with contextlib.suppress(OSError):
            os.rename(self.place(at, name), self.place(to, new))

    @rule(at=st.integers(0, 50), name=names, to=st.integers(0, 50), new=names)
    def exchange(self, at, name, to, new):
        _libc.renameat2(-100, self.place(at, name), -100, self.place(to, new), _RENAME_EXCHANGE)

    @rule(at=st.integers(0, 50), name=names, to=st.integers(0, 50), new=names)
    def link(self, at, name, to, new):
        with contextlib.suppress(OSError):
            os.link(self.place(at, name), self.place(to, new), follow_symlinks=False)

    @rule(at=st.integers(0, 50), name=names)
    def remove(self, at, name):
        path = self.place(at, name)
        with contextlib.suppress(OSError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    @rule(at=st.integers(0, 50), name=names, text=names)
    def symlink(self, at, name, text):
        with contextlib.suppress(OSError):
            os.symlink(text, self.place(at, name))

    @rule(at=st.integers(0, 50), name=names)
    def fifo(self, at, name):
        with contextlib.suppress(OSError):
            os.mkfifo(self.place(at, name))

    @rule(at=st.integers(0, 50), name=names, mode=modes, when=st.integers(0, 2**31), value=contents)
    def attributes(self, at, name, mode, when, value):
        path = self.place(at, name)
        with contextlib.suppress(OSError):
            os.utime(path, ns=(when, when * 1_000_000_001), follow_symlinks=False)
            if not os.path.islink(path):
                os.chmod(path, mode)
                os.setxattr(path, "user.test", value)

    @rule(at=st.integers(0, 50), name=names, content=contents)
    def replace_as_editors_do(self, at, name, content):
        path = self.place(at, name)
        aside = os.path.join(self.primary, b".aside")
        with open(aside, "wb") as file:
            file.write(content)
        with contextlib.suppress(OSError):
            os.replace(aside, path)

    # ---- what happens to the replication

    def seldom(self, what):
        """These take seconds: twice each in a sequence is enough."""
        return self.done.get(what, 0) < 2

    @precondition(lambda self: self.seldom("stop"))
    @rule()
    def stop_and_start(self):
        self.done["stop"] = self.done.get("stop", 0) + 1
        assert self.run.stop() == 0
        self.run.close()
        self.start()

    @precondition(lambda self: self.seldom("crash"))
    @rule()
    def crash_and_start(self):
        self.done["crash"] = self.done.get("crash", 0) + 1
        self.run.kill()
        self.run.close()
        self.start()

    @precondition(lambda self: self.seldom("rest"))
    @rule()
    def rest(self):
        self.done["rest"] = self.done.get("rest", 0) + 1
        self.run.wait_same(60)

    def teardown(self):
        if self.run is None:
            return
        try:
            self.run.wait_same(60)
            self.run.wait_idle(60)
            assert self.run.stop() == 0
            assert_same(self.base / "primary", self.base / "secondary")
        finally:
            if self.run.process.poll() is None:
                self.run.kill()
            self.run.close()
        shutil.rmtree(self.base)


def _run(examples, steps):
    run_state_machine_as_test(
        Replication,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, print_blob=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        ),
    )  # fmt: skip


def test_random_operations_converge():
    _run(examples=3, steps=50)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_operations_converge_for_long():
    _run(examples=40, steps=80)
