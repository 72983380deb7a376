"""What is found out about a secondary by trying: true, and nothing is left of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from replication.secondary.survey import survey
from tests.filesystems import available, filesystem


def look(root):
    return survey(os.fsencode(root), {"may_try": True})


def test_a_new_directory_looks_as_before(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "mine").write_text("x")
    os.utime(root, ns=(1, 1_000_000_007))
    found = look(root)
    assert os.listdir(root) == ["mine"]
    assert root.stat().st_mtime_ns == 1_000_000_007
    assert (found["root"], found["refused"]) == ("directory", None)
    assert found["can"]["links"] and found["can"]["case"] and found["can"]["symlinks"]
    assert found["can"]["chown"] == (os.geteuid() == 0)


def test_one_that_is_there_keeps_its_own(tmp_path):
    (tmp_path / ".seamark" / "displaced").mkdir(parents=True)
    assert look(tmp_path)["can"]["fifo"]
    assert os.listdir(tmp_path / ".seamark") == ["displaced"]


def test_one_to_be_made_is_not_made(tmp_path):
    found = look(tmp_path / "later")
    assert (found["root"], found["parent"], found["refused"]) == ("missing", True, None)
    assert os.listdir(tmp_path) == []
    assert look(tmp_path / "no" / "way")["parent"] is False


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
@pytest.mark.root
def test_on_file_systems(tmp_path, kind):
    if available(kind):
        pytest.skip(available(kind))
    with filesystem(kind, tmp_path / "fs", mib=64) as root:
        found = look(root)
        assert found["fs"]["type"] == kind
        lacks = {name for name, worked in found["can"].items() if not worked}
        assert ("reflink" in lacks) == (kind in ("tmpfs", "ext4")), found
        assert lacks - {"reflink"} <= ({"xattr", "acl", "trusted"} if kind == "tmpfs" else set()), found
        assert found["can"]["time_ns"] == 1
        assert os.statvfs(root).f_bavail * os.statvfs(root).f_frsize <= found["free_bytes"] + (1 << 20)


@pytest.mark.root
def test_without_rights_and_without_room_to_try(tmp_path):
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    program = (
        "import json, os, sys\nfrom replication.secondary.survey import survey\n"
        "print(json.dumps(survey(os.fsencode(sys.argv[1]), {'may_try': True})))"
    )
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    for directory in [tmp_path, *tmp_path.parents]:
        if not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o001)
    command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        sys.executable,
        "-S",
        "-c",
        program,
        root,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module" in done.stderr or "Permission" in done.stderr:
        pytest.skip(f"this checkout cannot be read by others: {done.stderr[-200:]}")
    assert '"refused": "Permission denied"' in done.stdout, done
    root.chmod(0o777)
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '"chown": false' in said and '"mknod": false' in said and '"links": true' in said
    assert os.listdir(root) == []
