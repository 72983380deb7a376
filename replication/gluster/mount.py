"""A mount of a Gluster volume of a session's own: what it sees is what the bricks have now.

Clients remember attributes, names and small files for a second, and would show an older state than the one that a
changelog tells of; and the kernel keeps pages of a file that somebody else wrote to, under the new times. So every cache of
the client is passed by, and the kernel believes no name and keeps no page. Nor does the client believe a single brick that
it has no file of a name: between the beginning of a rebalance and the move of a file, that is where it will be, and it would
be hidden. The client runs as a child of the session's process, and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

from replication.dying import die_with
from replication.errors import TemporaryError
from replication.gluster.address import GlusterAddress
from replication.gluster.glusterd import program
from replication.private import is_mount

GFID = "glusterfs.gfid"  # the virtual attribute that every object of a mount has
_PATIENCE_S = 30.0
_STEP_S = 0.02
_AGAIN_S = 2.0  # between attempts to mount anew
_CACHES = ("md-cache", "quick-read", "io-cache", "nl-cache", "readdir-ahead", "open-behind")
# The kernel looks a name up anew each time, which brings its attributes; they need not be fetched twice.
_ATTRIBUTES_S = 0.01


class GlusterMount:
    """The client process, and where it mounts. Not safe to share between threads."""

    def __init__(self, address: GlusterAddress, where: Path) -> None:
        self.address = address
        self.where = where
        self._log = where.parent / "mount.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0
        self._look_at = 0.0
        self._there_at = 0.0  # when it was there, or was begun

    def start(self) -> None:
        """Mount, and return when it can be used; does nothing where it is mounted by another process of the session.

        Raises TemporaryError.
        """
        if is_mounted(self.where):
            return
        self._spawn()
        until = time.monotonic() + _PATIENCE_S
        while not is_mounted(self.where):
            if not self._runs() or time.monotonic() > until:
                self.stop()
                raise TemporaryError(f"cannot mount {self.address}: {self._last_words()}")
            time.sleep(_STEP_S)

    def ensure(self) -> bool:
        """Mount anew where the client has ended, or the mount is gone, without waiting for it. True when it had to be.

        Whoever mounted it before us, or had it for a moment, takes it away at its end.
        """
        now = time.monotonic()
        if self._process is None or self._runs():
            if now < self._look_at:
                return False
            self._look_at = now + _AGAIN_S
            if is_mount(self.where):
                self._there_at = now
            if now < self._there_at + (_AGAIN_S if self._process is None else _PATIENCE_S):
                return False
            if self._process is not None:
                self._process.kill()  # it serves whoever has a file open, and nobody else
                self._process.wait()
        elif now < self._again_at:
            return False
        self._again_at = now + _AGAIN_S
        self._spawn()
        return True

    def stop(self) -> None:
        """End the client, and with it the mount. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        unmount(self.where)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _spawn(self) -> None:
        unmount(self.where)  # what a client that was killed left
        self.where.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [
            program("glusterfs"), "--no-daemon", "--process-name", "fuse", "--aux-gfid-mount", "--acl",
            "--direct-io-mode=enable", "--reader-thread-count=4",
            f"--attribute-timeout={_ATTRIBUTES_S}", "--entry-timeout=0", "--negative-timeout=0",
            *(f"--xlator-option=*-{name}.pass-through=true" for name in _CACHES),
            "--xlator-option=*-dht.lookup-optimize=off",
            "--log-level=WARNING", f"--log-file={self._log}",
            f"--volfile-server={self.address.host.strip('[]')}", f"--volfile-id=/{self.address.volume}", str(self.where),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=die_with(os.getpid()),
        )  # fmt: skip
        self._there_at = time.monotonic()

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        errors = [line for line in lines if "] E [" in line]
        return errors[-1].partition("] E [")[2] if errors else f"see {self._log}"


def is_mounted(where: Path) -> bool:
    """Whether a volume is mounted there, and its client answers."""
    with contextlib.suppress(OSError):
        return os.stat(where).st_dev != os.stat(where.parent).st_dev and bool(os.getxattr(where, GFID))
    return False


def unmount(where: Path) -> None:
    """Take away whatever is mounted there, also when somebody holds a file of it open."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["umount", "--lazy", str(where)], capture_output=True, check=False)
