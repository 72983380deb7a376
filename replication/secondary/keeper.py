"""The process that keeps the mount of a volume, with the client that it is, while anybody has a share in it (mounting.py)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import time
from typing import Callable

from replication.secondary.mounting import MODE, PRESENT, STEP_S, Place, locked, program_of, states

_KEEPER_S = 0.5
_PR_SET_PDEATHSIG = 1
_CACHES = ("md-cache", "quick-read", "io-cache", "nl-cache", "readdir-ahead", "open-behind")
_LOG_BYTES = 8 << 20  # of the client, in memory


def begin_keeper(place: Place, tell: int) -> None:
    """In a child: have a grandchild that is nobody's keep the mount. Never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        # Nothing of the agent's stays open: whoever waits for its end would wait for ours.
        kept = os.dup2(tell, 3) if tell != 3 else 3
        os.set_inheritable(kept, False)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.closerange(4, 1 << 16)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir("/")
        _keep(place, kept)
    finally:
        os._exit(1)


def _keep(place: Place, tell: int) -> None:
    locked(place.mount + b".keeper", fcntl.LOCK_EX)  # until the one before has ended
    os.umask(0o077)
    _unmount(place.mount)
    try:
        os.mkdir(place.mount, MODE)
    except FileExistsError:
        pass
    ended_well = place.mount + b".ended"
    try:
        os.unlink(ended_well)
    except FileNotFoundError:
        _begin_life(place.mount)
    log = place.mount + b".log"
    with open(log, "wb"):
        pass
    program = program_of("glusterfs")
    if program is None:
        os.write(tell, b"glusterfs is not installed there")
        return
    client = subprocess.Popen(
        [
            program, "--no-daemon", "--process-name", "fuse", "--aux-gfid-mount", "--acl", "--reader-thread-count=4",
            "--attribute-timeout=0.01", "--entry-timeout=0", "--negative-timeout=0",
            *("--xlator-option=*-{}.pass-through=true".format(name) for name in _CACHES),
            "--log-level=WARNING", "--log-file=" + os.fsdecode(log),
            "--volfile-server=" + place.host.strip("[]"), "--volfile-id=/" + place.volume, os.fsdecode(place.mount),
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_die_with(os.getpid()),
    )  # fmt: skip
    share = os.open(place.mount + b".share", os.O_RDWR | os.O_CLOEXEC)
    is_whole = ended_in_order = False
    while client.poll() is None:
        try:
            fcntl.flock(share, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ended_in_order = _is_whole(place) and not _forget_dead(place.mount)
            break
        except BlockingIOError:
            was_whole, is_whole = is_whole, _is_whole(place)
            if was_whole and not is_whole:
                _begin_life(place.mount)
            if os.stat(log).st_size > _LOG_BYTES:
                os.truncate(log, 0)
            time.sleep(_KEEPER_S if is_whole else STEP_S)
    _unmount(place.mount)
    try:
        client.wait(5)
        if ended_in_order:
            os.close(os.open(ended_well, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    except subprocess.TimeoutExpired:
        client.kill()
        client.wait()
    os.write(tell, _last_words(log))


def _forget_dead(mount: bytes) -> int:
    """How many agents have ended without a word. There are no others any more."""
    above, name = os.path.split(mount)
    dead = [each for each in os.listdir(above) if each.startswith(name + PRESENT)]
    for each in dead:
        os.unlink(above + b"/" + each)
    return len(dead)


def _is_whole(place: Place) -> bool:
    try:
        return all(states(place))
    except OSError:
        return False


def _die_with(parent: int) -> Callable[[], None]:
    """What the client does before exec: ask to be ended with its keeper, also when that is killed with -9."""
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def _unmount(mount: bytes) -> None:
    """Take away whatever is mounted there, also when somebody holds a file of it open."""
    try:
        found = os.stat(mount).st_dev != os.stat(os.path.dirname(mount)).st_dev
    except FileNotFoundError:
        return
    except OSError as error:
        found = error.errno in (errno.ENOTCONN, errno.EIO, errno.ECONNABORTED)
    if found:
        subprocess.run(["umount", "--lazy", os.fsdecode(mount)], capture_output=True, check=False)


def _last_words(log: bytes) -> bytes:
    with open(log, "rb") as file:
        errors = [line for line in file.read().splitlines() if b"] E [" in line]
    return errors[-1].partition(b"] E [")[2][:500] if errors else b""


def _begin_life(mount: bytes) -> None:
    """Raises OSError."""
    with open(mount + b".life.new", "w") as file:
        file.write(os.urandom(8).hex())
    os.rename(mount + b".life.new", mount + b".life")
