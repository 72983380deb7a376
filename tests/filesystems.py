"""Real file systems for tests: images on loop devices, and tmpfs, mounted for the time of a ``with``.

They need root, losetup and the mkfs of their kind; ``available`` says what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")
_PATH = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin:/sbin"
_MKFS = {
    # 64bit etc. are defaults; no reserved blocks, so that a small image can be filled.
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
_LEAST_MIB = {"ext4": 16, "xfs": 320, "btrfs": 128, "tmpfs": 1}


def available(kind: str) -> str:
    """Why a file system of this kind cannot be mounted here; empty if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if kind == "tmpfs":
        return ""
    for tool in (_MKFS[kind][0], "losetup", "mount", "umount"):
        if shutil.which(tool, path=_PATH) is None:
            return f"{tool} is not installed"
    if not os.path.exists("/dev/loop-control"):
        return "the kernel has no loop devices"
    return ""


def _run(*command: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, "PATH": _PATH}, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def image(kind: str, path: Path, *, mib: int = 256) -> Iterator[str]:
    """A loop device with a new file system in the file ``path``; yields the device's name."""
    with open(path, "wb") as file:
        file.truncate(max(mib, _LEAST_MIB[kind]) << 20)
    _run(*_MKFS[kind], str(path))
    with attached(path) as device:
        yield device
    path.unlink()


@contextmanager
def attached(path: Path) -> Iterator[str]:
    """An existing image on a loop device."""
    device = _run("losetup", "--find", "--show", str(path))
    try:
        yield device
    finally:
        _run("losetup", "--detach", device)


@contextmanager
def mounted(kind: str, device: str, where: Path, *options: str) -> Iterator[Path]:
    """``device`` mounted at ``where`` (made if absent); unmounted at the end, lazily if it is busy."""
    where.mkdir(parents=True, exist_ok=True)
    flags = ["-o", ",".join(options)] if options else []
    _run("mount", "-t", kind, *flags, device, str(where))
    try:
        yield where
    finally:
        try:
            _run("umount", str(where))
        except RuntimeError:
            _run("umount", "--lazy", str(where))
            raise


@contextmanager
def filesystem(kind: str, directory: Path, *, mib: int = 256) -> Iterator[Path]:
    """A new, empty file system of this kind, mounted at ``directory/kind``.

    ``mib`` is its size; XFS and btrfs have a minimum of their own. Raises RuntimeError.
    """
    where = directory / kind
    if kind == "tmpfs":
        with mounted("tmpfs", "tmpfs", where, f"size={mib}m", "mode=755"):
            yield where
        return
    directory.mkdir(parents=True, exist_ok=True)
    with image(kind, directory / f"{kind}.img", mib=mib) as device, mounted(kind, device, where):
        yield where
