"""A fleet of a test: hosts of their own for the primary's node, the broker, the secondary, and data workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import redis

from scheduler.redis_server import find_server
from scheduler.workers import workers_of
from tasks.servers import of_url
from tests.hosts import HostServer, Network, inside
from tests.system.harness import REPOSITORY, SeamarkRun

_PASSWORD = "a secret of the fleet"
_PORT = 6379


class Worker:
    """A host that has joined: where the volume is mounted there, and its `seamark worker`."""

    def __init__(self, fleet, name):
        self.fleet, self.host = fleet, fleet.network.host(name)
        self.base = fleet.base / name
        self.mounted, self.state = self.base / "volume", self.base / "state"
        self.state.mkdir(parents=True)
        self.log = self.base / "worker.log"
        self.process = None

    def environment(self):
        return {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "SEAMARK_STATE_DIR": str(self.state),
            "SEAMARK_BROKER": self.fleet.broker_url,
        }

    def mount(self, source=None):
        """The primary, or something else in its place, at another path than on its node; on this host alone."""
        self.host.mount(source or self.fleet.place.primary, self.mounted)

    def join(self, name="fleet", state=None):
        text = self.fleet.command("workers", "export", name, state=state or self.fleet.place.state)
        lines = [
            f'primary = "{self.mounted}"' if line.startswith("primary =") else line
            for line in text.splitlines()
        ]
        path = self.state / "config" / "workers" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def start(self, *options):
        command = [
            sys.executable,
            "-m",
            "seamark",
            "worker",
            "--name",
            f"{self.host.name}@{self.host.name}",
            *options,
        ]
        self.process = self.host.start(*command, log=self.log, env=self.environment())
        self.fleet.started.append(self.process)
        self.fleet.wait_for(
            lambda: self.row().get("state") in ("idle", "busy"), f"{self.host.name} to be there"
        )

    def row(self):
        """Of `seamark workers`; while nothing is known of it, or nobody can be asked, one that says so."""
        unknown = {"state": "", "done": -1, "rests": {}}
        with contextlib.suppress(redis.RedisError):
            return self.fleet.workers().get(f"{self.host.name}@{self.host.name}", unknown)
        return unknown

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()[-3000:]

    def crash(self):
        """kill -9 of all that runs there."""
        self.host.kill()
        self.process.wait(10)


class Fleet:
    """``place`` has the primary, the secondary and the state of the primary's node."""

    def __init__(self, place):
        self.place, self.base = place, place.base
        self.network = Network()
        self.node, self.broker, self.far = (self.network.host(name) for name in ("node", "broker", "far"))
        self.broker_url = f"redis://:{_PASSWORD.replace(' ', '%20')}@{self.broker.address}:{_PORT}/0"
        self.started = []
        self.start_broker()
        self.server = HostServer(self.far, self.base / "sshd")

    def start_broker(self):
        config = self.base / "redis.conf"
        config.write_text(
            f'bind {self.broker.address}\nport {_PORT}\nrequirepass "{_PASSWORD}"\nsave ""\nappendonly no\n'
        )
        self.started.append(self.broker.start(find_server(), config, log=self.base / "redis.log"))

    def run(self, *options, place=None, name="fleet"):
        """The session, on the primary's node."""
        place = place or self.place
        target = f"{self.server.user}@{self.server.host}:{place.secondary}"
        access = [
            "--ssh-port",
            str(self.server.port),
            "--identity",
            str(self.server.identity),
            "--accept-new-host-key",
        ]
        run = place.run(
            *access, "--name", name, *options, secondary=target, prefix=self.node.prefix,
            env={"SEAMARK_BROKER": self.broker_url},
        )  # fmt: skip
        run.secondary = place.secondary  # for the judges
        run.wait_idle(120)
        return run

    def worker(self, name, *, source=None, start=True, join=True):
        made = Worker(self, name)
        made.mount(source)
        if join:
            made.join()
        if start:
            made.start()
        return made

    def command(self, *words, state=None):
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "SEAMARK_STATE_DIR": str(state or self.place.state),
            "SEAMARK_BROKER": self.broker_url,
        }
        return self.node.run(sys.executable, "-m", "seamark", *words, env=environment, cwd="/", timeout=60)

    def workers(self):
        """What `seamark workers` says, by name; asked on the primary's node. Raises RedisError."""
        with inside(self.node.pid):
            return {row["worker"]: row for row in workers_of(of_url(self.broker_url))}

    def wait_for(self, condition, what, timeout=90):
        until = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < until, (what, self.logs())
            time.sleep(0.2)

    def logs(self):
        return {
            str(path): path.read_text(errors="replace")[-1500:] for path in self.base.glob("*/worker.log")
        }

    def down(self):
        self.server.stop()
        self.network.down()
        for process in self.started:
            process.wait()


def burst(directory: Path, files, size=70_000):
    """Files that are too large to travel with their names: their content is for data workers."""
    directory.mkdir(parents=True)
    for number in range(files):
        (directory / f"f{number}").write_bytes(os.urandom(size))
        if number % 5 == 0:
            os.setxattr(directory / f"f{number}", "user.number", str(number).encode())
            (directory / f"f{number}").chmod(0o4750)


def bursts_until(directory: Path, condition, most=200):
    """Burst after burst, until it holds."""
    for number in range(most):
        burst(directory / f"b{number}", 10)
        if condition():
            return
        time.sleep(0.3)
    raise AssertionError("not after so many bursts")


def needed():
    """What makes hosts."""
    return ("ip", "nsenter", "unshare", "mount", "sshd", "hostname")


def is_possible():
    """Whether this machine lets us make network namespaces."""
    return (
        os.geteuid() == 0
        and shutil.which("unshare") is not None
        and subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True).returncode
        == 0
    )


__all__ = ["Fleet", "SeamarkRun", "Worker", "burst", "bursts_until", "is_possible", "needed"]
