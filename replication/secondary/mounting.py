"""A root on a Gluster volume: a mount of this host's own, shared by all agents of that volume here.

The path of such a root says which volume it is, and of which host: ``/run/seamark/gluster/HOST/VOLUME[/SUBDIR]``. So one
path is what a session's key is limited to, what rsync is given, and what is mounted. An agent that starts on one makes the
mount, if there is none, and keeps a share in it: a lock that the kernel lets go of when the agent ends, however it ends. A
keeper, which is a process of its own, ends the mount when nobody has a share any more, and ends with it.

A brick that loses its power loses names that were not synced, and a client that is killed what it had not sent yet, though the host
of the agents goes on. So each mount has a life, which ends with such an event; to who replicates it is what a boot is.
A mount that ended in order, flushed by each of its agents, is followed by one of the same life.

The client is made so that objects are found, and made, by gfid (gfids.py); and it passes by its caches: what it shows is
what the bricks have.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import shutil
import stat
import subprocess
import time
from typing import List, NamedTuple, Optional

BASE = b"/run/seamark/gluster"
GFID = "glusterfs.gfid"  # the virtual attribute that every object of a mount has
_GRAPH = b".meta/graphs/active"
_PATIENCE_S = 30.0
STEP_S = 0.02
_BELIEVED_S = 0.2  # for which what check() found is believed
_STATES_BYTES = 1 << 20
MODE = 0o700
PRESENT = b".agent."
_held = False  # whether this process has a share in a mount


class VolumeAway(Exception):
    """The volume cannot be mounted, or does not answer, or not all of it does. A line for people."""


class Place(NamedTuple):
    """``mount``: where the volume is mounted; ``below``: the root, from there."""

    host: str
    volume: str
    mount: bytes
    below: bytes


def place_of(host: str, volume: str, subdir: bytes) -> bytes:
    """The path of a root."""
    return b"/".join(part for part in (BASE, host.encode(), volume.encode(), subdir) if part)


def volume_of(root: bytes) -> Optional[Place]:
    """The volume that a root is on by its path; None for any other directory."""
    if not root.startswith(BASE + b"/"):
        return None
    parts = root[len(BASE) + 1 :].split(b"/")
    if len(parts) < 2 or not all(parts) or b".." in parts:
        return None
    mount = b"/".join((BASE, *parts[:2]))
    return Place(os.fsdecode(parts[0]), os.fsdecode(parts[1]), mount, b"/".join(parts[2:]))


class Mount:
    """A share in the mount of a volume, until the end of this process. Raises VolumeAway."""

    def __init__(self, place: Place) -> None:
        global _held
        _held = True
        self._checked_s = float("-inf")
        self.place = place
        self._name = "volume {} of {}".format(place.volume, place.host)
        if os.geteuid() != 0:
            raise VolumeAway("{}: only root may mount it: log in as root".format(self._name))
        try:
            _make_private(os.path.dirname(place.mount))
            self._share = locked(place.mount + b".share", fcntl.LOCK_SH)
            with open(locked(place.mount + b".start", fcntl.LOCK_EX)):
                if not is_mounted(place.mount):
                    self._make()
                self._device = os.stat(place.mount).st_dev
                self._life = life(place)
            self._presence = b"%s%s%d" % (place.mount, PRESENT, os.getpid())
            os.close(os.open(self._presence, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise VolumeAway("{}: {}: {}".format(self._name, error.filename, error.strerror)) from None

    def _make(self) -> None:
        from replication.secondary.keeper import begin_keeper

        told, tell = os.pipe()
        keeper = os.fork()
        if not keeper:
            os.close(told)
            begin_keeper(self.place, tell)
        os.close(tell)
        os.waitpid(keeper, 0)  # which has left its child to itself
        until = time.monotonic() + _PATIENCE_S
        try:
            while not is_mounted(self.place.mount):
                ended = select.select([told], [], [], STEP_S)[0]
                if ended or time.monotonic() > until:
                    said = os.read(told, 1000).decode("utf-8", "replace") if ended else "it does not answer"
                    raise VolumeAway(
                        "{} cannot be mounted: {}".format(self._name, said or "the client ended")
                    )
        finally:
            os.close(told)

    def leave(self) -> None:
        """Say that all that was done here was flushed."""
        try:
            os.unlink(self._presence)
        except FileNotFoundError:
            pass

    def check(self) -> None:
        """Raises VolumeAway where what is not seen may only be out of reach."""
        try:
            # Another agent may have mounted it anew meanwhile: what is open here is on the client that died.
            if not is_mounted(self.place.mount) or os.stat(self.place.mount).st_dev != self._device:
                raise VolumeAway("{} does not answer: is it started, and are its bricks?".format(self._name))
            if life(self.place) != self._life:
                raise VolumeAway("{}: a part of it was away for a while".format(self._name))
            # What lies on a part that the client has lost looks as if it were not there.
            away = states(self.place).count(False)
        except OSError as error:
            raise VolumeAway("{} does not answer: {}".format(self._name, error.strerror)) from None
        if away:
            raise VolumeAway(
                "{}: {} of its parts are away: see gluster volume status".format(self._name, away)
            )
        self._checked_s = time.monotonic()

    def must_answer(self, now: bool = True) -> None:
        """Say so and end this process where it does not: whoever sent a request sends it again, when it is there.

        Nothing is closed before: what is open on a client that has died can be neither written nor closed.
        Not ``now``: it is not asked anew just after it was.
        """
        if not now and time.monotonic() - self._checked_s < _BELIEVED_S:
            return
        try:
            self.check()
        except VolumeAway as reason:
            os.write(2, "seamark: {}\n".format(reason).encode("utf-8", "backslashreplace"))
            os._exit(1)


def drop_pages(fd: int) -> None:
    """What is read of an open file next is what the bricks have. The kernel may keep pages of what stood there before somebody else
    wrote to it, under the new times (replication/gluster/mount.py).
    """
    if _held:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def hold(root: bytes) -> Optional[Mount]:
    """Have the volume of a root at hand, if it is on one. Raises VolumeAway."""
    place = volume_of(root)
    return None if place is None else Mount(place)


def life(place: Place) -> str:
    """Changes when what was written since the last sync may be lost: a part of the volume was away, or a client died. Raises OSError."""
    with open(place.mount + b".life") as file:
        return file.read()


def open_root(root: bytes, flags: int) -> int:
    """A root by its path, links in it followed; but within a volume, where others may make some, none is. Raises OSError."""
    place = volume_of(root)
    if place is None:
        return os.open(os.path.realpath(root), flags)
    fd = os.open(os.path.realpath(place.mount), flags)
    for part in filter(None, place.below.split(b"/")):
        try:
            below = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def make_root(root: bytes) -> None:
    """The same for one that is not there yet. Raises OSError."""
    parent_fd = open_root(os.path.dirname(root), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.mkdir(os.path.basename(root), 0o755, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)


def is_mounted(mount: bytes) -> bool:
    """Whether a volume is mounted there, and its client answers."""
    try:
        if os.stat(mount).st_dev == os.stat(os.path.dirname(mount)).st_dev:
            return False
        return bool(os.getxattr(mount, GFID))
    except OSError:
        return False


def _make_private(path: bytes) -> None:
    """A directory of ours alone, and those above it from ``/run`` on: what is mounted in it is shown to nobody else. Raises OSError."""
    at = os.path.dirname(os.path.dirname(BASE))
    for part in path[len(at) + 1 :].split(b"/"):
        at += b"/" + part
        try:
            os.mkdir(at, MODE)
        except FileExistsError:
            pass
        found = os.lstat(at)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise OSError(errno.EPERM, "not a directory of this user alone: remove it", os.fsdecode(at))


def locked(path: bytes, kind: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, kind)
    return fd


def _told(place: Place) -> List[bytes]:
    """What the client has of its sets of bricks, in lines. Raises OSError."""
    path = b"%s/%s/%s-dht/private" % (place.mount, _GRAPH, place.volume.encode())
    with open(path, "rb", buffering=0) as file:
        return (file.read(_STATES_BYTES) or b"").splitlines()


def is_one_brick(place: Place) -> bool:
    """Whether a single brick has all of the volume. Raises OSError."""
    lines = _told(place)
    return b"subvol_cnt = 1" in lines and any(
        line.startswith(b"subvolumes[0] = protocol/client.") for line in lines
    )


def states(place: Place) -> List[bool]:
    """Whether each set of bricks is there, as the client has it. Raises OSError."""
    lines = _told(place)
    found = [line.endswith(b"= 1") for line in lines if line.startswith(b"subvolume_status[")]
    if not found:  # of none at all none is away
        raise OSError(errno.EIO, "it does not say which bricks are there")
    return found


def subvolumes(place: Place) -> int:
    """How many sets of bricks the volume has. Raises OSError."""
    return len(states(place))


def volume_id(place: Place) -> str:
    """What glusterd of its host calls a volume; empty where nobody says."""
    program = program_of("gluster")
    if program is None:
        return ""
    words = [
        program,
        "--remote-host=" + place.host.strip("[]"),
        "--mode=script",
        "--xml",
        "volume",
        "info",
        place.volume,
    ]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(rb"<id>([0-9a-f-]{36})</id>", done.stdout)
    return found[1].decode() if found else ""


def program_of(name: str) -> Optional[str]:
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
