"""Fixtures for all rooms. Servers are real; where CI=true a missing tool fails the test, elsewhere it skips it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["tests.redis_server"]

# How long an example takes says how busy the machine is.
settings.register_profile("seamark", deadline=None)
settings.load_profile("seamark")

# The tests may run under nohup(1), and the programs that they start are to do what they do at a terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


def missing(reason: str) -> None:
    """What a test needs is not here: that fails in CI, where everything is installed, and skips elsewhere."""
    if IN_CI:
        pytest.fail(f"{reason} (CI=true: nothing may be skipped for want of a tool)", pytrace=False)
    pytest.skip(reason)


def need(*tools: str) -> None:
    """Each of ``tools`` is in PATH, or the test ends here (see ``missing``)."""
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin:/sbin"
    absent = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if absent:
        missing(f"not installed: {', '.join(absent)}")


@pytest.fixture(scope="session")
def in_memory():
    """Makes directories where a sync costs nothing, for tests of many examples."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shared if os.path.isdir(shared) else None) as base:
        yield lambda: Path(tempfile.mkdtemp(dir=base))


@pytest.fixture
def pipe():
    """A reader and an unbuffered writer."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb", buffering=0) as writer:
        yield reader, writer


@pytest.fixture(autouse=True)
def _fail_without_root(request):
    if request.node.get_closest_marker("root") and os.geteuid() != 0:
        missing("needs root")


@pytest.fixture(autouse=True)
def _our_environment_stays_what_it_is():
    """What runs in this process may name its node and its servers there: the next test's processes must not hear of it."""
    before = {name: value for name, value in os.environ.items() if name.startswith("SEAMARK_")}
    yield
    for name in [name for name in os.environ if name.startswith("SEAMARK_")]:
        del os.environ[name]
    os.environ.update(before)
