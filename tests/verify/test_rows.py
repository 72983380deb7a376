"""Every kind of difference, planted by hand on the secondary, is found as what it is, and nothing else is."""

from __future__ import annotations

import os
import shutil
import socket
import stat

import pytest

from replication.secondary.inspection import PIECE
from tests.conftest import need
from tests.judge import differences
from tests.system.trees import every_kind_of_thing
from tests.verify.comparing import Pair, keeping_times

root = pytest.mark.root


@pytest.fixture
def pair(tmp_path):
    need("rsync", "mtree")
    a = tmp_path / "a"
    (a / "dir" / "sub").mkdir(parents=True)
    for name in ("one", "two", "dir/three", "dir/sub/four"):
        (a / name).write_bytes(b"this is " + name.encode() + b"." * 100)
    (a / "dir" / "empty").mkdir()
    (a / "big").write_bytes(b"x" * (PIECE + 1000))
    with open(a / "holes", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    os.link(a / "one", a / "dir" / "linked")
    os.link(a / "two", a / "dir" / "linked to two")
    os.symlink("one", a / "symlink")
    os.mkfifo(a / "fifo")
    made = Pair(a, tmp_path / "b")
    yield made
    made.close()


def rewrite(path, data=None):
    """Other content of the same size, at the same time."""
    s = path.stat()
    path.write_bytes(data or b"!" * s.st_size)
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))


def byte_at(path, offset):
    s = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"!")
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))


def replaced(path, make):
    s = path.lstat()
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    make(path)
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns), follow_symlinks=False)


def copied(path):
    """The name is no link of the others any more."""
    shutil.copy2(path, f"{path}.new")
    os.replace(f"{path}.new", path)


def linked(path, to):
    path.unlink()
    os.link(to, path)


def filled(path):
    s = path.stat()
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))


def to_socket(path):
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(str(path))


PLANTED = [
    ("a file is gone", "dir/three", lambda p: p.unlink(), "MISSING"),
    ("a directory is gone", "dir/empty", lambda p: p.rmdir(), "MISSING"),
    ("a file too much", "dir/foreign", lambda p: p.write_bytes(b"x"), "EXTRA"),
    ("a directory too much", "foreign", lambda p: (p / "deep").mkdir(parents=True), "EXTRA"),
    ("an odd name too much", "dir/new\nline", lambda p: p.write_bytes(b"x"), "EXTRA"),
    ("content", "dir/three", rewrite, "CONTENT"),
    ("one byte in a large file", "big", lambda p: byte_at(p, PIECE + 500), "CONTENT"),
    ("the first byte of a large file", "big", lambda p: byte_at(p, 0), "CONTENT"),
    ("longer", "dir/sub/four", lambda p: rewrite(p, b"another size"), "SIZE"),
    ("truncated", "big", lambda p: rewrite(p, b"x" * PIECE), "SIZE"),
    ("mode of a file", "dir/three", lambda p: p.chmod(0o600), "META"),
    ("setuid", "dir/three", lambda p: p.chmod(p.stat().st_mode | stat.S_ISUID), "META"),
    ("mode of a directory", "dir/sub", lambda p: p.chmod(0o700), "META"),
    ("mtime", "dir/three", lambda p: os.utime(p, ns=(1, 10**18 + 1)), "META"),
    ("mtime of a directory", "dir/empty", lambda p: os.utime(p, ns=(1, 10**18 + 1)), "META"),
    ("mtime of a symlink", "symlink", lambda p: os.utime(p, ns=(1, 10**18), follow_symlinks=False), "META"),
    ("an attribute more", "dir/three", lambda p: os.setxattr(p, "user.x", b"1"), "META"),
    ("target of a symlink", "symlink", lambda p: replaced(p, lambda q: q.symlink_to("two")), "CONTENT"),
    ("a directory for a file", "dir/three", lambda p: replaced(p, lambda q: q.mkdir()), "TYPE"),
    ("a symlink for a file", "dir/three", lambda p: replaced(p, lambda q: q.symlink_to("x")), "TYPE"),
    ("a socket for a fifo", "fifo", lambda p: replaced(p, to_socket), "TYPE"),
    ("no link any more", "one", copied, "LINKS"),
    ("holes are filled", "holes", filled, "META"),
    pytest.param("owner", "dir/three", lambda p: os.chown(p, 1234, -1), "META", marks=root),
    pytest.param("group of a directory", "dir/sub", lambda p: os.chown(p, -1, 1234), "META", marks=root),
    pytest.param(
        "trusted attribute", "dir/sub", lambda p: os.setxattr(p, "trusted.x", b"1"), "META", marks=root
    ),
]


@pytest.mark.parametrize(("what", "path", "damage", "kind"), PLANTED)
def test_what_is_planted_is_found(pair, what, path, damage, kind):
    assert pair.found() == {}, what
    assert not differences(pair.a, pair.b)
    target = pair.b / path
    keeping_times(target, lambda: damage(target))
    assert pair.found() == {path: kind}
    if what != "holes are filled":  # which neither judge can see
        assert differences(pair.a, pair.b)


def test_two_files_that_are_one_there_are_found(pair):
    """The same content, owner and times, so that nothing but the link tells."""
    for name in ("dir/three", "dir/sub/four"):
        for side in (pair.a, pair.b):
            (side / name).write_bytes(b"same")
            os.utime(side / name, ns=(10**18, 10**18))
    keeping_times(
        pair.b / "dir" / "sub" / "four",
        lambda: linked(pair.b / "dir" / "sub" / "four", pair.b / "dir" / "three"),
    )
    assert pair.found() == {"dir/three": "LINKS"}  # the one whose path comes later


def test_what_is_below_a_missing_directory_is_missing_too(pair):
    keeping_times(pair.b / "dir", lambda: shutil.rmtree(pair.b / "dir" / "sub"))
    os.utime(pair.b / "dir", ns=(0, os.stat(pair.a / "dir").st_mtime_ns))
    assert pair.found() == {"dir/sub": "MISSING", "dir/sub/four": "MISSING"}


def test_quick_leaves_contents_unread(pair):
    rewrite(pair.b / "dir" / "three")
    assert pair.found(content=False) == {}
    assert pair.outcome(content=False).contents == 0
    (pair.b / "dir" / "sub" / "four").write_bytes(b"longer")
    assert pair.found(content=False) == {"dir/sub/four": "SIZE"}


def test_acls_are_compared(pair):
    need("setfacl")
    os.system(f"setfacl -m u:1:r {pair.b}/dir/three; setfacl -d -m u:1:r {pair.b}/dir/sub")
    assert pair.found() == {"dir/three": "META", "dir/sub": "META"}


@root
def test_device_numbers_are_compared(tmp_path):
    (tmp_path / "a").mkdir()
    os.mknod(tmp_path / "a" / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    pair = Pair(tmp_path / "a", tmp_path / "b")
    assert pair.found() == {}
    make = lambda p: os.mknod(p, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # noqa: E731
    keeping_times(pair.b / "device", lambda: replaced(pair.b / "device", make))
    assert pair.found() == {"device": "CONTENT"}
    pair.close()


def test_everything_that_survives_replication_compares_as_equal(tmp_path):
    (tmp_path / "a").mkdir()
    every_kind_of_thing(tmp_path / "a")
    pair = Pair(tmp_path / "a", tmp_path / "b")
    assert pair.found() == {}
    found = pair.outcome()
    names = sum(len(d) + len(f) for _, d, f in os.walk(os.fsencode(pair.a)))
    assert found.names == names + 1  # and the root
    assert found.digest == pair.outcome(jobs=7).digest
    pair.close()


def test_what_the_filters_leave_out_is_not_compared_and_counted(tmp_path):
    a = tmp_path / "a"
    (a / "cache").mkdir(parents=True)
    (a / "cache" / "x").write_bytes(b"x")
    (a / "b.tmp").write_bytes(b"x")
    (a / "c").write_bytes(b"x")
    pair = Pair(a, tmp_path / "b", filters=["- *.tmp", "- /cache/"])
    (pair.b / "b.tmp").write_bytes(b"other")
    (pair.b / "d.tmp").write_bytes(b"other")
    shutil.rmtree(pair.b / "cache")
    os.utime(pair.b, ns=(0, os.stat(a).st_mtime_ns))
    assert pair.found() == {}
    assert pair.outcome().excluded == 2
    pair.close()


def test_what_is_too_young_is_left_out(pair):
    rewrite(pair.b / "dir" / "three")
    assert pair.found(min_age_s=3600) == {}
    assert pair.outcome(min_age_s=3600).young > 8
    os.utime(pair.a / "two", ns=(0, 0))
    assert pair.found(min_age_s=0.0)["dir/three"] == "CONTENT"


@root
def test_what_cannot_be_read_is_told_and_is_no_difference(tmp_path):
    """The far side is an ordinary user here; root reads everything."""
    a, b = tmp_path / "a", tmp_path / "b"
    (a / "locked").mkdir(parents=True)
    for name in ("secret", "open", "locked/x"):
        (a / name).write_bytes(b"x")
        os.chown(a / name, 65534, 65534)
    for path in (a, a / "locked"):
        os.chown(path, 65534, 65534)
    for path in [tmp_path, *tmp_path.parents][:4]:
        path.chmod(path.stat().st_mode | 0o055)
    pair = Pair(a, b, user=65534)
    assert pair.found() == {}
    os.chown(b / "secret", 0, 0)
    (b / "secret").chmod(0o600)
    assert pair.found() == {"secret": "UNREADABLE"}
    found = pair.outcome()
    assert (found.different, found.unreadable, int(found.exit_code)) == (0, 1, 3)
    os.chown(b / "locked", 0, 0)
    (b / "locked").chmod(0o700)
    (a / "locked").chmod(0o700)
    assert pair.found() == {"secret": "UNREADABLE", "locked/": "UNREADABLE"}
    pair.close()
