"""resync heals what somebody changed on the secondary, where nothing else would look."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.judge import assert_same
from tests.scheduler.test_monitor import node  # noqa: F401


@pytest.mark.parametrize("detector", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
def test_foreign_changes_are_healed(node, detector):  # noqa: F811
    primary, copy = node.session("photos", "--set", f"change_detector={detector}")
    for directory in ("d/e", "other"):
        (primary / directory).mkdir(parents=True)
    for name in ("a", "d/b", "d/e/c", "d/e/gone", "d/linked", "other/o"):
        (primary / name).write_text(f"this is {name}")
    os.link(primary / "d" / "linked", primary / "other" / "link")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for_file(copy / "other" / "o", "this is other/o")
    node.wait_for_file(copy / "d" / "e" / "gone", "this is d/e/gone")
    node.wait_for(lambda: same(primary, copy), "the copy")

    def tamper():
        for name in ("d/b", "d/e/c"):
            stat = (copy / name).stat()
            (copy / name).write_text("x" * stat.st_size)
            os.utime(copy / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (copy / "d" / "e" / "gone").unlink(missing_ok=True)
        (copy / "d" / "linked").chmod(0o600)
        (copy / "d" / "e").chmod(0o700)

    tamper()
    inode = (copy / "a").stat().st_ino
    node.ok("resync", "photos", primary / "d" / "b", "--wait")
    assert (copy / "d" / "b").read_text() == "this is d/b"
    assert (copy / "d" / "e" / "c").read_text().startswith("xxx")  # that was not asked for
    tamper()
    shutil.rmtree(copy / "other")
    node.ok("resync", "photos", "d", "--wait")
    assert (copy / "d" / "e" / "c").read_text() == "this is d/e/c"
    assert not (copy / "other").exists()
    node.ok("resync", "photos", primary, "--wait")
    node.wait_for(lambda: same(primary, copy), "the copy")
    assert_same(primary, copy)
    assert (copy / "a").stat().st_ino == inode  # what is right is not sent
    for words, says in [(("/etc",), "is not in the primary"), (("../x",), "is not in the primary")]:
        done = node.command("resync", "photos", *words)
        assert (done.returncode, says in done.stderr) == (2, True), done
    node.ok("stop", "photos")
    assert "start it" in node.command("resync", "photos", "a", "--wait").stderr
    (copy / "a").write_text("changed!!")
    node.ok("resync", "photos", "a")
    node.ok("start", "photos")
    node.wait_for_file(copy / "a", "this is a")
    mark = [name for name in os.listxattr(primary) if "seamark" in name]
    node.ok("stop", "photos")
    wait = lambda: node.command("delete", "photos", "--reset-sync-time").returncode == 0  # noqa: E731
    node.wait_for(wait, "the session to be deleted")
    assert mark and not any("seamark" in name for name in os.listxattr(primary))
    assert node.stop() == 0


def same(primary, copy):
    try:
        assert_same(primary, copy)
    except AssertionError:
        return False
    return True
