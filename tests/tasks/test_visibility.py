"""A task that renews its visibility is not handed out again while it runs; one that does not, is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("renewing", [True, False])
def test_a_long_task_runs_once_if_it_renews(redis_server, renewing):
    environment = {**os.environ, "SEAMARK_BROKER": redis_server.url, "PYTHONPATH": str(REPOSITORY)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.tasks.visibility_app", "worker", "-c", "3", "-l", "ERROR"],
        cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    sender = (
        "from tests.tasks.visibility_app import long\n"
        f"long.apply_async(kwargs={{'renewing': {renewing}}}, ignore_result=True)"
    )
    try:
        subprocess.run([sys.executable, "-c", sender], cwd=REPOSITORY, env=environment, check=True)
        with redis_server.client() as client:
            until = time.monotonic() + 40
            while not client.get(f"ended:{renewing}"):
                assert time.monotonic() < until, "the task did not end"
                time.sleep(0.2)
            started = int(client.get(f"started:{renewing}"))
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    # Without renewing it is handed out again: were it not, the first half of this test would show nothing.
    assert started == 1 if renewing else started > 1
