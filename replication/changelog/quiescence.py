"""Proof that nothing changed on a file system while no agent recorded it.

A token is taken after the last change was recorded, and compared before the next recording counts: equal
tokens mean that nothing was written to the file system in between. The evidence is

- ext4, XFS: the sectors ever written to the block device, read after syncfs(2). A change that happened
  is either written already, or made by the second syncfs, and counts. Whether writes are counted at all is tried first.
- btrfs: the generation of the subvolume, after syncfs.

Anything else (tmpfs, network file systems, journals on a device of their own) has no token, and neither has
a file system that others write to all the time: then the agent's absence is a gap. A token never
survives a reboot, another mount, or another disk under the same number.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from replication.secondary.boot import boot_id

_libc = ctypes.CDLL(None, use_errno=True)
_BTRFS_IOC_GET_SUBVOL_INFO = 0x81F8943C
_SUBVOL_INFO_SIZE, _GENERATION_AT = 504, 280
_PROBE = "user.seamark.probe"
_STAT_WRITTEN_SECTORS = 6  # Documentation/block/stat.rst
_COUNTED = {"ext4", "xfs"}


def take_token(root: str, *, probe: bool) -> str | None:
    """What the file system of ``root`` has written so far, or None where nothing sound can be said.

    Waits until all changes are on the disk. ``probe``: write an xattr of our own to the root first, and see that
    it is counted; do so when a token is to be kept, not when it is compared.
    """
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        kind, options, mount = _mount_of(fd)
        evidence = _btrfs if kind == "btrfs" else _device if kind in _COUNTED else None
        if evidence is None or "logdev=" in options or "rtdev=" in options:
            return None
        if probe and not _is_counted(fd, evidence):
            return None
        _syncfs(fd)
        return f"{boot_id()} {mount} {kind} {evidence(fd)}"
    except (OSError, ValueError, IndexError):
        return None
    finally:
        os.close(fd)


def _is_counted(fd: int, evidence: object) -> bool:
    assert callable(evidence)
    _syncfs(fd)
    before = evidence(fd)
    os.setxattr(fd, _PROBE, os.urandom(8))
    try:
        _syncfs(fd)
        return bool(before != evidence(fd))
    finally:
        os.removexattr(fd, _PROBE)


def _syncfs(fd: int) -> None:
    if _libc.syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")


def _mount_of(fd: int) -> tuple[str, str, str]:
    """Type, options and id of the mount a descriptor is on. Source: proc_pid_fdinfo(5), proc_pid_mountinfo(5)."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    mount = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[0] == mount:
            kind, _, options = fields[fields.index("-") + 1 :][:3]
            return kind, options, f"{mount} {fields[2]}"
    raise ValueError("the mount is not listed")


def _device(fd: int) -> str:
    """The counter of the block device. Raises OSError, ValueError where it is not kept, or not enough."""
    number = os.fstat(fd).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
    disk = device.parent if (device / "partition").exists() else device
    if (disk / "queue/iostats").read_text().strip() != "1":
        raise ValueError("the kernel does not count what is written")
    journals = (
        [entry.name for entry in Path("/proc/fs/jbd2").glob("*")] if Path("/proc/fs/jbd2").exists() else []
    )
    if device.name in journals:
        raise ValueError("the journal is on this device, so another one's may be elsewhere")
    written = (device / "stat").read_text().split()[_STAT_WRITTEN_SECTORS]
    return f"{device.name} {(disk / 'diskseq').read_text().strip()} {written}"


def _btrfs(fd: int) -> str:
    info = bytearray(_SUBVOL_INFO_SIZE)
    fcntl.ioctl(fd, _BTRFS_IOC_GET_SUBVOL_INFO, info)
    (tree,) = struct.unpack_from("<Q", info)
    (generation,) = struct.unpack_from("<Q", info, _GENERATION_AT)
    return f"{tree} {generation}"
