"""A real OpenSSH server of our own for tests: loopback, random port, own keys, nothing of this machine's.

The client's side is kept apart too: ``config`` is an ssh_config that reads nothing of the user's.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from replication.remote.endpoint import SshOptions
from replication.remote.target import Target
from tests.conftest import need

_PATH = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin:/sbin"


class SshServer:
    """``directory`` holds everything. ``known_hosts`` has the right key of the server; ``pinned`` is the
    session's own file, empty at first. ``options()`` trusts ``known_hosts``.
    """

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", port: int = 0, **settings: str) -> None:
        self.directory = directory
        self.user = getpass.getuser()
        self.host = host
        self.port = port or _free_port()
        self.identity = directory / "id"
        self.authorized_keys = directory / "authorized_keys"
        self.host_key = directory / "host_key"
        self.known_hosts = directory / "known_hosts"
        self.pinned = directory / "pinned" / "known_hosts"
        self.config = directory / "ssh_config"
        self.home = directory / "home"
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.temporary = directory / "tmp"
        for place in (self.home, self.temporary):
            place.mkdir(exist_ok=True)
        _keygen(self.identity)
        shutil.copy(f"{self.identity}.pub", self.authorized_keys)
        self.authorized_keys.chmod(0o600)
        self.new_host_key()
        self.trust()
        self.config.write_text(
            "UserKnownHostsFile /dev/null\nGlobalKnownHostsFile /dev/null\nIdentityFile none\n"
        )
        self.start()

    def options(self, **changes) -> SshOptions:
        """How to reach this server. Keyword arguments replace parts."""
        return SshOptions(
            **{
                "port": self.port,
                "identity": self.identity,
                "config_file": self.config,
                "known_hosts_file": self.known_hosts,
                "connect_timeout_s": 10.0,
                **changes,
            }
        )

    def target(self, path: Path | str | bytes) -> Target:
        return Target(os.fsencode(path), self.host, self.user)

    def new_host_key(self, kind: str = "ed25519") -> None:
        """The next start() shows another key."""
        for file in (self.host_key, Path(f"{self.host_key}.pub")):
            file.unlink(missing_ok=True)
        _keygen(self.host_key, kind)

    def trust(self) -> None:
        """Make ``known_hosts`` say what the server's key is now."""
        kind, key = Path(f"{self.host_key}.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {kind} {key}\n")

    def start(self) -> None:
        """Start (again, on the same port) and wait until it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd as root insists on it
        settings = {
            "ListenAddress": self.host,
            "Port": str(self.port),
            "HostKey": str(self.host_key),
            "AuthorizedKeysFile": f"{self.authorized_keys} {self.home}/.ssh/authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "yes",
            "PermitUserEnvironment": "no",
            # A home of its own, so that caches and start-up files of this machine's user stay out of it.
            "SetEnv": f"HOME={self.home} TMPDIR={self.temporary} PATH={_PATH}",
            "MaxStartups": "100",
            "Subsystem": "sftp internal-sftp",
            **self.settings,
        }
        config = self.directory / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items() if value))
        sshd = shutil.which("sshd", path=_PATH)
        assert sshd
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError(f"sshd did not start: {self.log()}")

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop it and end every connection that it serves."""
        if self.process is None:
            return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def pids(self) -> list[int]:
        """The server, the processes that serve connections, and all that they started."""
        assert self.process is not None
        found = [self.process.pid]
        for pid in found:
            found += _children(pid)
        return found


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _keygen(file: Path, kind: str = "ed25519") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "seamark-test", "-f", file], check=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def ssh_server(tmp_path):
    """One server for one test, which may do to it what it likes."""
    need("sshd", "ssh", "ssh-keygen")
    server = SshServer(tmp_path / "sshd")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared_ssh_server(tmp_path_factory):
    """One server for all tests of a module that leave it as it is."""
    need("sshd", "ssh", "ssh-keygen")
    server = SshServer(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()
