"""A Docker engine of a test's own: its own data, socket and containers, and nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.conftest import missing, need


class Engine:
    """A running dockerd whose files are in ``directory``, and which leaves the host's firewall alone.

    ``data``: an empty file system of its own, so that recording and syncing it is no matter of the host's.
    """

    def __init__(self, directory: Path, data: Path):
        self.data = data
        self.env = {**os.environ, "DOCKER_HOST": f"unix://{directory}/socket", "DOCKER_BUILDKIT": "0"}
        self._exec = directory / "exec"
        self._log = directory / "dockerd.log"
        command = [
            "dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "--data-root", self.data,
            "--exec-root", self._exec, "--host", f"unix://{directory}/socket", "--pidfile", directory / "pid",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while subprocess.run(["docker", "version"], env=self.env, capture_output=True).returncode:
            if self._process.poll() is not None or time.monotonic() > until:
                self.close()
                missing(f"no Docker engine runs here: {self._log.read_text()[-500:]}")
            time.sleep(0.2)

    def docker(self, *words, **more) -> str:
        """A command of docker's; what it printed."""
        return run(["docker", *map(str, words)], env=self.env, **more)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if (at := line.split()[4]).startswith((f"{self.data}/", f"{self._exec}/")):
                subprocess.run(["umount", "--lazy", at], check=False)


def run(command, *, env, timeout=600, **more) -> str:
    """Its standard output. AssertionError with all of it when it fails."""
    done = subprocess.run(command, env=env, timeout=timeout, capture_output=True, text=True, **more)
    assert done.returncode == 0, (command, done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def need_engine():
    """Everything that a Docker engine needs is here, or the test ends here."""
    if os.geteuid() != 0:
        missing("a Docker engine of its own needs root")
    need("dockerd", "docker", "docker-compose", "mkfs.ext4", "losetup")
