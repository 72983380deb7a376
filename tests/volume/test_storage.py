"""What a recorder of this host cannot see all of."""

from __future__ import annotations

import pytest

from replication.volume.storage import is_shared, shared_kind


def test_a_disk_of_this_host_is_its_own(tmp_path):
    assert shared_kind(str(tmp_path)) == ""
    assert shared_kind("/dev/shm") == ""


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "ceph", "cifs", "gfs2", "ocfs2", "lustre", "9p", "fuse.glusterfs"]
)
def test_others_may_write_to_it(kind):
    assert is_shared(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuse.mergerfs", ""])
def test_nobody_else_writes_to_it(kind):
    assert not is_shared(kind)
