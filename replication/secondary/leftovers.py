"""What earlier connections left in our staging directory: swept when nobody can want it any more."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import stat
import time
from contextlib import suppress

from replication.secondary import layout
from replication.secondary.agent import Agent
from replication.secondary.basis import partials, salvage
from replication.secondary.syscalls import list_directory, rename_new

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFTOVER_AGE_S = 7 * 86400
_YOUNG_S = 600  # a transfer may begin before the look that wants it is in the index
_SWEEP_EVERY_S = 3600
_DROPPED = b".dropped"  # in the place of a version
_OF_A_FILE = re.compile(rb"([0-9a-f]{32})(\..*)?$")


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
    """Remove staging directories, and units, whose process is gone: nobody holds their lock. And what was placed, but is here still."""
    staging_fd = os.open(layout.STAGING, _DIR, dir_fd=hidden_fd)
    try:
        for name in os.listdir(staging_fd):
            if name.startswith("unit."):
                _remove_unlocked_unit(staging_fd, os.fsencode(name))
                continue
            if not name.startswith("agent."):
                if _OF_A_FILE.match(os.fsencode(name)):
                    _remove_placed(staging_fd, os.fsencode(name))
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


def _remove_unlocked_unit(staging_fd: int, name: bytes) -> None:
    """Of files that are here it holds links, which they would have too many, and nobody may come for this very unit again."""
    lock = b"lock." + name
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=staging_fd)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if still_called(fd, staging_fd, lock):
            _remove_unit(staging_fd, name)
            os.unlink(lock, dir_fd=staging_fd)
    except OSError:
        pass  # somebody is at it
    finally:
        os.close(fd)


def _remove_unit(staging_fd: int, name: bytes) -> None:
    salvage(staging_fd, name)
    shutil.rmtree(b"/proc/self/fd/%d/%s" % (staging_fd, name), ignore_errors=True)


def sweep_units(agent: Agent) -> None:
    """What an earlier epoch was about: units of engines, and transfers that nobody wants or came back to."""
    staging_fd = agent.tree.staging_fd
    for name in list_directory(staging_fd):
        if name.startswith(b"unit."):
            _remove_unit(staging_fd, name)
        elif name.startswith(b"lock."):
            _remove_old(staging_fd, name, _LEFTOVER_AGE_S)
    _sweep_transfers(agent)


def sweep_unwanted(agent: Agent) -> None:
    """The same of transfers, without a new epoch: a run may last for years. Looks once an hour at most."""
    if time.monotonic() - agent.swept_s > _SWEEP_EVERY_S:
        _sweep_transfers(agent)


def _sweep_transfers(agent: Agent) -> None:
    agent.swept_s = time.monotonic()
    with partials(agent.tree.staging_fd) as partial_fd:
        for dir_fd in (agent.tree.staging_fd, partial_fd):
            if dir_fd is not None:
                _sweep_directory(agent, dir_fd)


def _sweep_directory(agent: Agent, dir_fd: int) -> None:
    gfids = {
        name: bytes.fromhex(match[1].decode())
        for name in list_directory(dir_fd)
        for match in [_OF_A_FILE.match(name)]
        if match
    }
    rows = agent.index.inodes(set(gfids.values()))
    for name, gfid in gfids.items():
        row = rows.get(gfid)
        wanted = row.dirty if row is not None else agent.rebuilding
        _remove_old(dir_fd, name, _LEFTOVER_AGE_S if wanted else _YOUNG_S)


def _remove_placed(dir_fd: int, name: bytes) -> None:
    """A transfer whose process was killed when the file had its name: it would have a link too many."""
    try:
        if os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_nlink > 1:
            _remove_old(dir_fd, name, float("-inf"))
    except OSError:
        pass


def still_called(fd: int, dir_fd: int, name: bytes) -> bool:
    """Whether what was opened, and locked since, stands at the name still: who had it locked may have removed or placed it. Raises OSError.

    By its links too: on a volume what is made anew with a gfid has the same inode number.
    """
    found = os.fstat(fd)
    try:
        return found.st_nlink > 0 and os.path.samestat(
            found, os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        )
    except FileNotFoundError:
        return False


def _remove_old(dir_fd: int, name: bytes, age_s: float) -> None:
    """Unless it was written to lately, or somebody has it locked."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > age_s:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if still_called(fd, dir_fd, name):
                os.unlink(name, dir_fd=dir_fd)
    except OSError:
        pass
    finally:
        os.close(fd)


def drop_transfers(staging_fd: int, keeps_inodes: bool = False) -> None:
    """Transfers that were under way are begun anew: how long such a file is says nothing of its pages any more.

    ``keeps_inodes``: what may be open still goes on as the object that it is, of no version (transfers.py).
    """
    for name in map(os.fsencode, os.listdir(staging_fd)):
        if name == b"partial":
            shutil.rmtree(b"/proc/self/fd/%d/%s" % (staging_fd, name), ignore_errors=True)
        elif not name.startswith((b"agent.", b"unit.", b"lock.")):
            with suppress(OSError):
                if not keeps_inodes or not _is_of_no_version(staging_fd, name):
                    os.unlink(name, dir_fd=staging_fd)


def _is_of_no_version(staging_fd: int, name: bytes) -> bool:
    """By now. False: it has its place already, or there is another one of its file."""
    if os.stat(name, dir_fd=staging_fd, follow_symlinks=False).st_nlink > 1:
        return False
    try:
        rename_new(staging_fd, name, staging_fd, name[:32] + _DROPPED)
    except FileExistsError:
        return False
    return True
