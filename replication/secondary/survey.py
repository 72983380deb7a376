"""What a host, a user and a file system can do for a secondary, found by trying. The op `survey`.

What is tried is tried in a directory of our own, which is gone afterwards: in ``.seamark`` where there is
a root, beside it where it has yet to be made. Nothing else is changed, and nothing has to be there.
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
import secrets
import shutil
import stat
import struct
import time
from hashlib import sha256
from typing import Any, Callable, Dict, Optional, Tuple

import replication.secondary
from replication.secondary import layout, mounting
from replication.secondary.clones import can_clone
from replication.secondary.syscalls import free_bytes
from replication.secondary.trial import program_version

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# acl(5) as an xattr: version 2; user::rw-, user:1:r--, group::r--, mask::r--, other::---
_ACL = struct.pack(
    "<IHHIHHIHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 2, 4, 1, 4, 4, 0xFFFFFFFF, 16, 4, 0xFFFFFFFF, 32, 0, 0xFFFFFFFF
)
_ODD_NS = 1_234_567_891


def survey(root: bytes, request: Dict[str, Any]) -> Dict[str, Any]:
    """Facts about this side. ``request["may_try"]``: whether anything may be tried. Raises OSError.

    ``volume_id``: of the Gluster volume that the root is on. ``root``: "missing", "directory" or "other"; ``parent``: whether a missing one can be made; ``can``: what
    worked; ``refused``: why nothing could be tried; ``home``: of the user, resolved.
    """
    answer: Dict[str, Any] = {
        "python": platform.python_version(), "uid": os.geteuid(), "user": _user(), "home": _home(),
        "rsync": program_version("rsync"), "tar": program_version("tar"), "t": time.time_ns(),
        "agent": _digest(), "root": "missing", "real": os.fsdecode(os.path.realpath(root)),
    }  # fmt: skip
    volume = mounting.volume_of(root)
    if volume is not None:
        answer["volume_id"] = mounting.volume_id(volume)
    place = root
    if not os.path.lexists(root):
        place = os.path.dirname(root)
        answer["parent"] = os.path.isdir(place)
        if not answer["parent"]:
            return answer
    elif not os.path.isdir(root):
        answer["root"] = "other"
        return answer
    else:
        answer["root"] = "directory"
    fd = mounting.open_root(place, _DIR)
    try:
        found = os.fstatvfs(fd)
        answer.update(
            free_bytes=free_bytes(fd), free_inodes=found.f_favail if found.f_files else None,
            name_max=found.f_namemax, fs=filesystem(fd),
        )  # fmt: skip
        if request.get("may_try"):
            answer["can"], answer["refused"] = _try(fd, inside=place == root)
    finally:
        os.close(fd)
    return answer


def filesystem(fd: int) -> Dict[str, str]:
    """Type and source of the file system of a descriptor, as proc(5) mountinfo has them; {} where unknown."""
    try:
        with open("/proc/self/fdinfo/{}".format(fd)) as file:
            mount = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                words = left.split()
                if words[0] == mount:
                    return {"type": right.split()[0], "at": words[4], "options": words[5]}
    except (OSError, StopIteration, IndexError):
        pass
    return {}


def _digest() -> Optional[str]:
    """sha256 of the file that this program was started from; None where it is no single file."""
    archive = getattr(replication.secondary.__loader__, "archive", None)
    if archive is None:
        return None
    with open(archive, "rb") as file:
        return sha256(file.read()).hexdigest()


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _home() -> str:
    return os.path.realpath(os.environ.get("HOME") or os.path.expanduser("~"))


def _try(fd: int, inside: bool) -> Tuple[Optional[Dict[str, Any]], Optional[str]]:
    """What works in this directory, or why nothing could be tried. The directory looks as before afterwards."""
    before = os.fstat(fd)
    hidden = layout.HIDDEN if inside else None
    made = False
    trial = b"trial." + secrets.token_hex(8).encode()
    home_fd = fd
    try:
        try:
            if hidden is not None:
                made = _mkdir(hidden, fd)
                home_fd = os.open(hidden, _DIR, dir_fd=fd)
            else:
                trial = b".seamark-" + trial
            os.mkdir(trial, 0o700, dir_fd=home_fd)
            try:
                return _abilities(home_fd, trial), None
            finally:
                shutil.rmtree(b"/proc/self/fd/%d/%s" % (home_fd, trial), ignore_errors=True)
        finally:
            if home_fd != fd:
                os.close(home_fd)
            if made and hidden is not None:
                _quietly(lambda: os.rmdir(hidden, dir_fd=fd))
            if os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
                _quietly(lambda: os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns)))
    except OSError as error:
        return None, os.strerror(error.errno or errno.EIO)


def _mkdir(name: bytes, fd: int) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=fd)
        return True
    except FileExistsError:
        return False


def _abilities(parent_fd: int, name: bytes) -> Dict[str, Any]:
    at = os.open(name, _DIR, dir_fd=parent_fd)
    try:
        fd = os.open(b"probe", _NEW, 0o600, dir_fd=at)
        try:
            return _probe(at, fd)
        finally:
            os.close(fd)
    finally:
        os.close(at)


def _probe(at: int, fd: int) -> Dict[str, Any]:
    other = 65534 if os.geteuid() != 65534 else 65533
    os.write(fd, b"x")
    os.utime(fd, ns=(_ODD_NS, _ODD_NS))
    can: Dict[str, Any] = {"time_ns": _granularity(os.fstat(fd).st_mtime_ns)}
    attempts: Dict[str, Callable[[], Any]] = {
        "xattr": lambda: os.setxattr(fd, "user.seamark.probe", b"1"),
        "trusted": lambda: os.setxattr(fd, "trusted.seamark.probe", b"1"),
        "acl": lambda: os.setxattr(fd, "system.posix_acl_access", _ACL),
        "links": lambda: os.link(b"probe", b"linked", src_dir_fd=at, dst_dir_fd=at),
        "symlinks": lambda: os.symlink(b"probe", b"symlink", dir_fd=at),
        "fifo": lambda: os.mkfifo(b"fifo", 0o600, dir_fd=at),
        "mknod": lambda: os.mknod(b"device", stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=at),
        "bytes": lambda: os.close(os.open(b"\xff\x01", _NEW, 0o600, dir_fd=at)),
        "tmpfile": lambda: os.close(os.open(b".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=at)),
        "holes": lambda: _holes(fd),
        "reflink": lambda: _clones(at),
        "chown": lambda: os.fchown(fd, other, other),
    }
    for name, attempt in attempts.items():
        can[name] = _works(attempt)
    can["case"] = not _works(lambda: os.stat(b"PROBE", dir_fd=at))
    return can


def _clones(at: int) -> None:
    if not can_clone(at):
        raise OSError(errno.EOPNOTSUPP, "no shared blocks")


def _holes(fd: int) -> None:
    """A file with a hole of 8 MiB and a byte behind it: does it take the room of the byte only?"""
    os.pwrite(fd, b"x", 8 << 20)
    os.fsync(fd)  # some file systems count blocks only then
    if os.fstat(fd).st_blocks * 512 > 4 << 20:
        raise OSError(errno.EOPNOTSUPP, "no holes")


def _granularity(kept: int) -> int:
    """The step of time stamps in ns, from what became of _ODD_NS."""
    for step in (1, 100, 1000, 1_000_000, 10_000_000):
        if kept == _ODD_NS // step * step:
            return step
    return 1_000_000_000 if kept % 2_000_000_000 else 2_000_000_000


def _works(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
        return True
    except (OSError, NotImplementedError):
        return False


def _quietly(attempt: Callable[[], Any]) -> None:
    _works(attempt)
