"""What earlier connections left in our staging directory: swept when nobody can want it any more."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import time

from replication.secondary import layout

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFTOVER_AGE_S = 7 * 86400


def end_frozen(hidden_fd: int) -> None:
    """Kill agents of this root that are stopped (SIGSTOP): whoever served them has given up or will, and nobody
    else gets what they hold locked. What they were about is mended as after any kill.
    """
    staging = "/proc/self/fd/{}/{}".format(hidden_fd, os.fsdecode(layout.STAGING))
    for name in os.listdir(staging):
        kind, _, rest = name.partition(".")
        pid = rest.partition(".")[0]
        try:
            if kind == "agent" and _is_stopped(pid) and _has_open(pid, os.stat(staging + "/" + name)):
                os.kill(int(pid), signal.SIGKILL)
        except (OSError, ValueError):  # it ended, or is somebody else's
            pass


def _is_stopped(pid: str) -> bool:
    with open("/proc/{}/stat".format(pid)) as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def _has_open(pid: str, directory: os.stat_result) -> bool:
    """Whether that process is the one of this directory, and no later one or one of another namespace."""
    fds = "/proc/{}/fd/".format(pid)
    return any(os.path.samestat(os.stat(fds + fd), directory) for fd in os.listdir(fds))


def sweep_staging(hidden_fd: int) -> None:
    """Remove staging directories whose process is gone: nobody holds their lock."""
    staging_fd = os.open(layout.STAGING, _DIR, dir_fd=hidden_fd)
    try:
        for name in os.listdir(staging_fd):
            if not name.startswith("agent."):
                continue
            fd = os.open(name, _DIR, dir_fd=staging_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree("/proc/self/fd/{}/{}".format(staging_fd, name), ignore_errors=True)
            except OSError:
                pass
            finally:
                os.close(fd)
    finally:
        os.close(staging_fd)


def sweep_units(staging_fd: int) -> None:
    """What an earlier epoch was about: units of engines, and transfers that nobody came back to."""
    for name in os.listdir(staging_fd):
        if name.startswith("unit."):
            shutil.rmtree("/proc/self/fd/{}/{}".format(staging_fd, name), ignore_errors=True)
        elif not name.startswith("agent."):
            found = os.stat(name, dir_fd=staging_fd, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > _LEFTOVER_AGE_S:
                os.unlink(name, dir_fd=staging_fd)


def drop_transfers(staging_fd: int) -> None:
    """Transfers that were under way are begun anew: how long such a file is says nothing of its pages any more."""
    for name in os.listdir(staging_fd):
        if name == "partial":
            shutil.rmtree("/proc/self/fd/{}/{}".format(staging_fd, name), ignore_errors=True)
        elif not name.startswith(("agent.", "unit.", "lock.")):
            try:
                os.unlink(name, dir_fd=staging_fd)
            except OSError:
                pass
