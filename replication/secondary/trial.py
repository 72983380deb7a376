"""What this user can do, and this file system keep: found out by trying."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from typing import Any, Dict, Optional

from replication.secondary.agent import Agent


def probe(agent: Agent) -> Dict[str, Any]:
    """What can be kept here, found out by trying in our staging directory."""
    fd = os.open(b"probe", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=agent.staging_fd)
    powers = agent.powers
    try:
        powers.xattr = _can(lambda: os.setxattr(fd, "user.seamark.probe", b"1"))
        powers.trusted = _can(lambda: os.setxattr(fd, "trusted.seamark.probe", b"1"))
        other = 65534 if powers.uid != 65534 else 65533
        powers.chown = _can(lambda: os.fchown(fd, other, other))
        acl = _can(lambda: _same_acl(fd))
        powers.mknod = _can(
            lambda: os.mknod(b"probe.dev", stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=agent.staging_fd)
        )
        for name in (b"probe", b"probe.dev"):
            try:
                os.unlink(name, dir_fd=agent.staging_fd)
            except FileNotFoundError:
                pass
    finally:
        os.close(fd)
    return {
        "writable": True, "xattr": powers.xattr, "trusted": powers.trusted, "mknod": powers.mknod,
        "chown": powers.chown, "acl": acl, "magic": agent.tree.device,
    }  # fmt: skip


def _same_acl(fd: int) -> None:
    try:
        os.getxattr(fd, "system.posix_acl_access")
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def _can(attempt: Any) -> bool:
    try:
        attempt()
        return True
    except OSError:
        return False


def program_version(program: str) -> Optional[str]:
    """First line of ``program --version``; None when it is not here."""
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return lines[0].strip() if lines else None
