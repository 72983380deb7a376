"""Whether other hosts may write to a file system: a recorder sees what its own kernel does, and nothing else."""

from __future__ import annotations

import os

from replication.secondary.survey import filesystem

GLUSTER = "fuse.glusterfs"
# As proc(5) mountinfo names them.
_SHARED = frozenset({
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "fuse.ceph-fuse", "fuse.davfs", GLUSTER, "fuse.juicefs",
    "fuse.lizardfs", "fuse.mfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "gpfs", "lustre", "ncpfs", "nfs",
    "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "virtiofs", "vboxsf",
})  # fmt: skip


def is_shared(kind: str) -> bool:
    """Whether file systems of this type are mounted by several hosts at a time."""
    return kind in _SHARED


def shared_kind(path: str) -> str:
    """The type of the file system of a directory, if it is one that other hosts may write to; else empty.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = filesystem(fd).get("type", "")
    finally:
        os.close(fd)
    return kind if is_shared(kind) else ""
