"""The mark rests on one system call of the secondary agent: it is made, on the right file system, and its failure is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from replication.remote.answers import SecondaryError
from tests.conftest import need
from tests.secondary.primary import Far, Primary


class Traced:
    """The agent of ``far`` under strace(1), which may have system calls of it fail."""

    def __init__(self, far, log, *options):
        need("strace")
        self._log = log
        pid = str(far.process.pid)
        self._process = subprocess.Popen(
            [
                "strace",
                "-f",
                "-y",
                "-q",
                "-o",
                str(log),
                "-e",
                "trace=syncfs,fsync,fdatasync",
                *options,
                "-p",
                pid,
            ],
            stderr=subprocess.DEVNULL,
        )
        status = Path("/proc", pid, "status")
        until = time.monotonic() + 20
        while "TracerPid:\t0" in status.read_text():
            assert time.monotonic() < until
            assert self._process.poll() is None
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)

    def calls(self, name):
        """The paths that a call was made for."""
        return re.findall(rf"{name}\(\d+<([^>]*)>", self._log.read_text())


@pytest.fixture
def far(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "file").write_bytes(os.urandom(5000))
    made = Far(tmp_path / "b")
    Primary(tmp_path / "a").crawl(made.client)
    yield made
    made.close()


def test_sync_writes_out_the_file_system_of_the_root(far, tmp_path):
    with Traced(far, tmp_path / "trace") as traced:
        far.client.call("sync")
    assert str(tmp_path / "b") in traced.calls("syncfs")


def test_a_sync_that_fails_is_told_and_what_is_not_durable_is_compared_again(far, tmp_path):
    with (
        Traced(far, tmp_path / "trace", "-e", "inject=syncfs:error=EIO"),
        pytest.raises(SecondaryError, match="Input/output error") as failed,
    ):
        far.client.call("sync")
    assert failed.value.code == "sync-failed"
    assert far.client.stat()["dirty"] == 1, "its content may be lost, though it looks clean"
    assert far.client.call("sync").header["gen"]
