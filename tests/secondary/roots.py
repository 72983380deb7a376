"""Roots on file systems of their own that can be copied without copying: btrfs, as subvolume and as directory, and XFS."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager

from tests.conftest import missing
from tests.filesystems import available, filesystem

KINDS = ("btrfs subvolume", "btrfs directory", "xfs")
METHODS = {"btrfs subvolume": "btrfs", "btrfs directory": "reflink", "xfs": "reflink"}


@contextmanager
def root_of(kind, directory, mib=512):
    """A new root of this kind; the file system is gone afterwards."""
    system = kind.split()[0]
    if why := available(system):
        missing(why)
    with filesystem(system, directory, mib=mib) as mounted:
        root = mounted / "root"
        if kind == "btrfs subvolume":
            subprocess.run(["btrfs", "subvolume", "create", root], check=True, stdout=subprocess.DEVNULL)
        else:
            root.mkdir()
        yield root
